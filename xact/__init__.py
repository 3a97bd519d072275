"""xact."""
