"""Learning rates to start from, by the loss that is trained."""

from __future__ import annotations

from hlscore.artifacts.plan import PlanRate, PlanRates

# Of full fine-tuning: the defaults of TRL's trainers.
_FULL = {"sft": 2e-5, "dpo": 1e-6, "grpo": 1e-6}
_LORA_FACTOR = 10


def suggested_rates(objective: str) -> PlanRates:
    """Learning rates for AdamW to start from, with their source.

    Args:
        objective: `sft`, `dpo` or `grpo`; `none` counts as `sft`.
    """
    objective = "sft" if objective == "none" else objective
    full = _FULL[objective]
    source = (
        f"starting point, not measured on this model: {full:g} is the default of TRL's "
        f"{objective.upper()}Trainer, and LoRA's best rate is about {_LORA_FACTOR} times that of "
        "full fine-tuning (Schulman et al., LoRA Without Regret, 2025); tune both"
    )
    lora = float(f"{_LORA_FACTOR * full:.6g}")
    return PlanRates(
        full=PlanRate(value=full, source=source), lora=PlanRate(value=lora, source=source)
    )
