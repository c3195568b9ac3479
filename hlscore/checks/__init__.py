"""Rules that a plan is checked against, and what they find."""
