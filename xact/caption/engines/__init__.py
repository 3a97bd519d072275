"""What writes captions, one library each."""
