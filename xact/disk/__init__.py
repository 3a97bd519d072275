"""Files that survive a crash: durable writes, locks, hashes, paths."""
