"""What is shown: where it is, its labels, its pixels."""
