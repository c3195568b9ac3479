"""Learning rates to start from, by the loss that is trained."""

from __future__ import annotations

# Of full fine-tuning: the defaults of TRL's trainers.
_FULL = {"sft": 2e-5, "dpo": 1e-6, "grpo": 1e-6}
_LORA_FACTOR = 10
_FACTOR_SOURCE = (
    f"LoRA's best rate is about {_LORA_FACTOR} times that of full fine-tuning (Schulman et al., "
    "LoRA Without Regret, 2025)"
)


def suggested_rates(objective: str) -> tuple[float, float]:
    """Learning rates for AdamW to start from.

    Args:
        objective: `sft`, `dpo` or `grpo`; `none` counts as `sft`.
    """
    full = _FULL["sft" if objective == "none" else objective]
    return full, float(f"{_LORA_FACTOR * full:.6g}")


def rate_source(objective: str) -> str:
    """Where the suggested rates come from, in a sentence."""
    trainer = "SFT" if objective == "none" else objective.upper()
    return (
        f"starting point, not measured on this model: {suggested_rates(objective)[0]:g} is the "
        f"default of TRL's {trainer}Trainer, and {_FACTOR_SOURCE}; tune both"
    )
