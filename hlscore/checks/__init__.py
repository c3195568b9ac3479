"""Rules that a plan is held against, and what they find."""
