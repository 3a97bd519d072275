"""The version of what decides values: decoding, jitter, transforms, capture, reductions and rounding."""

from __future__ import annotations

VALUES_VERSION = 1
"""Raise it with every change after which the same recipe, weights and stimuli give other values than before.

A store compares it before it adds rows to rows of an earlier run; `tests/promises/test_values_version.py` notices a
change without a new version.

1: every xact up to now, and every row for which no version is recorded.
"""
