"""Probe losses: pure functions of logits and labels."""
