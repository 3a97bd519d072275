"""Write a table of captions for pictures."""
