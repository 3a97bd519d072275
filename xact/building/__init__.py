"""Recipe -> store: prepare, run, write, publish; also import and extract."""
