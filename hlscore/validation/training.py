"""One short training with TRL's SFTTrainer, and what it came to."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hlscore.artifacts.plan import Plan
from hlscore.errors import ModelError, first_line
from hlscore.inputs.tokens import pad_token_id
from hlscore.planning.rates import suggested_rates
from hlscore.probes.batches import IGNORED, by_length, collate, cut
from hlscore.probes.units import ProbeExample
from hlscore.validation.examples import Examples, training_order

POINTS = 8
"""How often the test loss of a training is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one training shall be.

    Attributes:
        arm: Name of the arm.
        seed: Seed of its examples and adapters.
        factor: What the suggested learning rates are multiplied by.
    """

    arm: str
    seed: int
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a training.

    Attributes:
        trial: Which one.
        steps: Steps after which the test loss was measured.
        curve: Test loss there, nats per counted token.
        tuning_loss: Loss on the tuning examples at the end; NaN where it diverged.
        sums: Loss of each test example at the end, nats.
        seconds: Wall time of the steps.
        measuring_seconds: Wall time of measuring along the way.
        also_sums: Loss of each example of the other data at the end, nats; empty without such.
    """

    trial: Trial
    steps: tuple[int, ...]
    curve: tuple[float, ...]
    tuning_loss: float
    sums: tuple[float, ...]
    seconds: float
    measuring_seconds: float
    also_sums: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all trainings start from.

    Attributes:
        model: The base model; it is copied, never changed.
        tokenizer: Its tokenizer.
        examples: What is trained and tested on.
        steps: Optimizer steps.
        batch_size: Sequences per step.
        also: Examples of other data, on which forgetting is measured.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    steps: int
    batch_size: int
    also: tuple[ProbeExample, ...] = ()


def train(ground: Ground, plan: Plan, trial: Trial) -> Outcome:
    """Train a copy of the model as a plan says.

    The learning rates rise over a tenth of the steps and fall linearly to zero; gradients are
    clipped at norm 1; AdamW without weight decay.

    Args:
        ground: What it starts from.
        plan: What is trained.
        trial: Seed and rates.

    Returns:
        What came of it.

    Raises:
        ModelError: The trainer refuses the model.
    """
    from hlscore.training.apply import apply

    torch.manual_seed(trial.seed)
    measured = _Measured(ground)
    with tempfile.TemporaryDirectory(prefix="hlscore-validate-") as folder, _quiet():
        model = apply(copy.deepcopy(ground.model), plan, allow_other_weights=True)
        trainer = _trainer(ground, plan, trial, model, folder, measured)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began - measured.seconds
    model.eval()
    tuning = example_sums(model, ground.examples.tuning, ground)
    counted = sum(item.counted_tokens for item in ground.examples.tuning)
    return Outcome(
        trial=trial,
        steps=tuple(measured.steps),
        curve=tuple(measured.losses),
        tuning_loss=sum(tuning) / counted,
        sums=tuple(measured.sums),
        seconds=seconds,
        measuring_seconds=measured.seconds,
        also_sums=tuple(example_sums(model, ground.also, ground)),
    )


@torch.no_grad()
def example_sums(
    model: torch.nn.Module, examples: Sequence[ProbeExample], ground: Ground
) -> list[float]:
    """Loss of each example, nats summed over its counted tokens.

    Args:
        model: A model, wrapped or not.
        examples: What is measured.
        ground: Size of the batches.

    Returns:
        One sum per example, in their order.
    """
    device = next(model.parameters()).device
    pad = pad_token_id(ground.tokenizer, ground.model)
    found: dict[ProbeExample, float] = {}
    for part in cut(by_length(examples), 4 * ground.batch_size):
        batch = collate(part, pad_token_id=pad, padding_side="right", device=device)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        ).logits  # fmt: skip
        losses = functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), batch.labels[:, 1:],
            ignore_index=IGNORED, reduction="none",
        )  # fmt: skip
        found |= dict(zip(part, losses.sum(dim=1).tolist(), strict=True))
    return [found[item] for item in examples]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainer from telling users about its own deprecated options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class _Measured(TrainerCallback):  # type: ignore[misc]
    """Measures the test loss a few times along a training, the last time at its end."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._wanted = {round(ground.steps * part / POINTS) for part in range(1, POINTS + 1)}
        self._counted = sum(item.counted_tokens for item in ground.examples.test)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.sums: list[float] = []
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Measure after the wanted steps."""
        if state.global_step not in self._wanted:
            return
        began, model = time.perf_counter(), given["model"]
        model.eval()
        self.sums = example_sums(model, self._ground.examples.test, self._ground)
        model.train()
        self.steps.append(state.global_step)
        self.losses.append(sum(self.sums) / self._counted)
        self.seconds += time.perf_counter() - began


def _trainer(
    ground: Ground, plan: Plan, trial: Trial, model: Any, folder: str, measured: _Measured
) -> Any:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from hlscore.training.mixin import HybridTrainerMixin

    class Ordered(HybridTrainerMixin, SFTTrainer):
        """Takes the examples as they are listed."""

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    order = training_order(
        ground.examples.training, count=ground.steps * ground.batch_size, seed=trial.seed
    )
    # Plans for other losses suggest their rates, and this is SFT.
    full_rate, lora_rate = suggested_rates("sft")
    if plan.provenance.probes.objective in ("sft", "none"):
        full_rate = plan.learning_rates.full.value
        lora_rate = plan.learning_rates.lora.value
    device = next(model.parameters()).device
    arguments = SFTConfig(
        output_dir=folder, max_steps=ground.steps, per_device_train_batch_size=ground.batch_size,
        warmup_steps=max(1, ground.steps // 10), lr_scheduler_type="linear", max_grad_norm=1.0,
        weight_decay=0.0, seed=trial.seed, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, max_length=None, use_cpu=device.type == "cpu",
        bf16=model.dtype == torch.bfloat16, fp16=False, gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    try:
        trainer = Ordered(
            model=model, args=arguments, processing_class=_padded(ground.tokenizer),
            train_dataset=Dataset.from_list([_row(item) for item in order]),
            plan=plan, allow_other_weights=True, callbacks=[measured],
            full_lr=trial.factor * full_rate, lora_lr=trial.factor * lora_rate,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"TRL cannot train this model: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _row(item: ProbeExample) -> dict[str, list[int]]:
    labels = [
        token if counted else IGNORED
        for token, counted in zip(item.input_ids, item.counted, strict=True)
    ]
    return {"input_ids": list(item.input_ids), "labels": labels}


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    return padded
