"""Files that stay whole after a crash: durable writes, locks, hashes, paths."""
