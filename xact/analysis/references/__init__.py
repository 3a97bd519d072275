"""Reference RDMs in files of other programs, read without running code: one module for each kind of file."""
