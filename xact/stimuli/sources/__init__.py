"""Sources of stimuli, one module for each kind."""
