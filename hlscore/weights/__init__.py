"""Weights as matrices: their singular values, and what those tell."""
