"""The recipe: its schema, its YAML text, the registry of models."""
