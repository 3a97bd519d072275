"""The format on disk: plan, tasks, layout, shards, journal, snapshot, checks."""
