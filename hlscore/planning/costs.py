"""What it costs to train a module in full or with LoRA, in parameters."""

from __future__ import annotations

from hlscore.records import Candidate, ModuleRow


def full_params(row: ModuleRow | Candidate) -> int:
    """Parameters trained when a module is trained in full: weight and bias."""
    return row.n_params


def lora_params(row: ModuleRow | Candidate, rank: int) -> int:
    """Parameters of a LoRA adapter of a given rank: `r (out + in)` per matrix."""
    return row.matrices * rank * (row.out_features + row.in_features)
