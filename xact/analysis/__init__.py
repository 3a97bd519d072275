"""From activations to dissimilarities: RDMs, their comparison, references. Needs no torch."""
