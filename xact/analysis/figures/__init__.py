"""Figures of RDMs and scores: one file a figure, matplotlib Axes in and out."""
