"""The registry: networks with a label, and functions that look them up."""
