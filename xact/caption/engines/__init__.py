"""Engines that write captions, one module per library."""
