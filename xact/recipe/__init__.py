"""Recipes: their schema, their YAML, the registry of networks."""
