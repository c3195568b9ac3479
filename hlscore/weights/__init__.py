"""Scores of the weights alone, from their singular values."""
