"""The networks that have a label: data, and their look-up."""
