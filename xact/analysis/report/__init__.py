"""One HTML page about a store or its RDMs: numbers, figures, pictures."""
