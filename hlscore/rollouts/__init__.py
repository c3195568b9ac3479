"""Rollouts: completions of the model itself, and what they are worth."""
