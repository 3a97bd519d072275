"""What a recipe may ask for: its schema, its YAML, the registry."""
