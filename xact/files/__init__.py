"""Files of other programs, a folder for each format: read, write, describe, verify."""
