"""Pictures -> a table of captions."""
