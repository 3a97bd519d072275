"""Networks, their weights and transforms."""
