"""AdaLoRA, which changes ranks while it trains and so runs one training after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import peft
import torch
from stacked import BETAS, LARGEST_NORM, WARMUP, Trained, Trial, example_losses
from transformers import LlamaForCausalLM
from world import Batch


def train_adalora(
    base: Callable[[], LlamaForCausalLM],
    modules: Sequence[str],
    trials: Sequence[Trial],
    batches: Callable[[int, int], Batch],
    *,
    rank: int,
    steps: int,
    tuning: Batch,
    test: Batch,
) -> tuple[list[Trained], int]:
    """Train AdaLoRA with PEFT as its documentation says, from 3/2 of the rank down to it.

    Args:
        trials: The trainings; only `lora_rate` counts.
        batches: Gives the batch of a seed and a step.
        rank: Mean rank at the end.

    Returns:
        What came of each training, and the trained parameters at the end.
    """
    found, size = [], 0
    for trial in trials:
        model = _wrapped(base, modules, rank, steps, trial.seed)
        parameters = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=trial.lora_rate, betas=BETAS, weight_decay=0.0)
        for step in range(1, steps + 1):
            factor = min(step / (WARMUP * steps), (steps - step + 1) / ((1 - WARMUP) * steps), 1.0)
            optimizer.param_groups[0]["lr"] = factor * trial.lora_rate
            batch = batches(trial.seed, step)
            optimizer.zero_grad()
            model(input_ids=batch.ids, labels=batch.labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            optimizer.step()
            model.base_model.update_and_allocate(step)
        tuned, _ = example_losses(model, tuning)
        losses, right = example_losses(model, test)
        size = _kept(model)
        found.append(
            Trained(
                trial=trial,
                curve=(float(losses.mean()),),
                tuning_loss=float(tuned.mean()),
                losses=tuple(round(float(value), 6) for value in losses),
                accuracy=float(right.float().mean()),
            )
        )
    return found, size


def _wrapped(
    base: Callable[[], LlamaForCausalLM], modules: Sequence[str], rank: int, steps: int, seed: int
) -> peft.PeftModel:
    config = peft.AdaLoraConfig(
        init_r=max(rank + 1, 3 * rank // 2), target_r=rank, lora_alpha=2 * rank,
        tinit=steps // 10, tfinal=steps // 4, deltaT=max(1, steps // 40), total_step=steps,
        target_modules=list(modules),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(base(), config)


def _kept(model: peft.PeftModel) -> int:
    """Parameters of the directions that are still in use."""
    count = 0
    for name, value in model.named_parameters():
        if "lora_E" in name:
            kept = int((value != 0).sum())
            stem = name.replace("lora_E", "lora_{}")
            sides = dict(model.named_parameters())
            width = sides[stem.format("A")].shape[1] + sides[stem.format("B")].shape[0]
            count += kept * (width + 1)
    return count
