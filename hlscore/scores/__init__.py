"""Scores: one pure function each, by name."""
