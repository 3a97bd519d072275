"""One file for each library of networks."""
