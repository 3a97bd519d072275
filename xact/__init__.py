"""xact: turn a recipe into a labelled data set of neural-network activations."""

__version__ = "0.1.0"
