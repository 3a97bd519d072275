"""Stimuli: their sources, their labels and their pixels."""
