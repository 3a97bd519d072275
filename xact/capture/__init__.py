"""One network, one batch -> the units of each layer."""
