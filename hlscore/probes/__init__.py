"""Probes: tokenized sequences, what each of them counts, and the halves they fall into."""
