"""One short training with TRL's SFTTrainer, and its outcome."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hlscore.artifacts.plan import Plan
from hlscore.errors import ModelError, first_line
from hlscore.objectives.likelihood import IGNORED, token_log_probs
from hlscore.planning.rates import suggested_rates
from hlscore.probes.batches import by_length, collate, cut
from hlscore.probes.units import ProbeExample

# How often the test loss of a training is measured.
POINTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Which training it is.

    Attributes:
        arm: Name of the arm.
        seed: Seed of its examples and adapters.
        full_factor: What the suggested learning rate of modules in full is multiplied by.
        lora_factor: The same for adapters; they have rates of their own in every trainer.
    """

    arm: str
    seed: int
    full_factor: float = 1.0
    lora_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a training.

    Attributes:
        training: Which one.
        steps: Steps after which the test loss was measured.
        curve: Test loss there, nats per counted token.
        tuning_loss: Loss on the tuning examples at the end; NaN where it diverged.
        sums: Loss of each test example at the end, nats.
        seconds: Wall time of the steps.
        measuring_seconds: Wall time of measuring along the way.
        also_sums: Loss of each example of the other data at the end, nats; empty without such.
    """

    training: Training
    steps: tuple[int, ...]
    curve: tuple[float, ...]
    tuning_loss: float
    sums: tuple[float, ...]
    seconds: float
    measuring_seconds: float
    also_sums: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all trainings have in common.

    Attributes:
        model: The base model; it is copied, never changed.
        tokenizer: Its tokenizer.
        pad_token_id: Id used for padding.
        training: Examples to train on.
        tuning: Examples that choose the learning rates.
        test: Examples whose loss is reported.
        also: Examples of other data, on which forgetting is measured.
        steps: Optimizer steps.
        batch_size: Sequences per step.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    training: tuple[ProbeExample, ...]
    tuning: tuple[ProbeExample, ...]
    test: tuple[ProbeExample, ...]
    also: tuple[ProbeExample, ...] = ()
    steps: int
    batch_size: int

    def sums(self, model: torch.nn.Module, examples: Sequence[ProbeExample]) -> list[float]:
        """Loss of each example under a model, nats summed over its counted tokens."""
        return example_sums(model, examples, self.pad_token_id, batch_size=4 * self.batch_size)


def train(setup: Setup, plan: Plan, training: Training) -> Outcome:
    """Train a copy of the model as a plan says.

    The learning rates rise over a tenth of the steps and fall linearly to zero; gradients are
    clipped at norm 1; AdamW without weight decay.
    """
    from hlscore.training.apply import apply

    torch.manual_seed(training.seed)
    measured = _Measured(setup)
    with (
        tempfile.TemporaryDirectory(prefix="hlscore-validate-") as folder,
        warnings.catch_warnings(),
    ):
        # The trainer warns of its own deprecated options.
        warnings.simplefilter("ignore", FutureWarning)
        model = apply(copy.deepcopy(setup.model), plan, allow_other_weights=True)
        trainer = _trainer(setup, plan, training, model, folder, measured)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began - measured.seconds
    model.eval()
    return Outcome(
        training=training,
        steps=tuple(measured.steps),
        curve=tuple(measured.losses),
        tuning_loss=sum(setup.sums(model, setup.tuning)) / counted_tokens(setup.tuning),
        sums=tuple(measured.sums),
        seconds=seconds,
        measuring_seconds=measured.seconds,
        also_sums=tuple(setup.sums(model, setup.also)),
    )


def counted_tokens(examples: Sequence[ProbeExample]) -> int:
    """Tokens of all examples that count in the loss."""
    return sum(item.counted_tokens for item in examples)


def training_order(
    examples: Sequence[ProbeExample], *, count: int, seed: int
) -> list[ProbeExample]:
    """So many examples, epoch after epoch, each in an order of its own; the same for every arm."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // len(examples))
    places = np.concatenate([rng.permutation(len(examples)) for _ in range(epochs)])
    return [examples[place] for place in places[:count]]


@torch.no_grad()
def example_sums(
    model: torch.nn.Module, examples: Sequence[ProbeExample], pad_token_id: int, *, batch_size: int
) -> list[float]:
    """Loss of each example, nats summed over its counted tokens."""
    device = next(model.parameters()).device
    found: dict[ProbeExample, float] = {}
    for part in cut(by_length(examples), batch_size):
        batch = collate(part, pad_token_id=pad_token_id, padding_side="right", device=device)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask,
            position_ids=batch.position_ids, use_cache=False,
        ).logits  # fmt: skip
        sums = -token_log_probs(logits, batch.labels).sum(dim=1)
        found |= dict(zip(part, sums.tolist(), strict=True))
    return [found[item] for item in examples]


class _Measured(TrainerCallback):  # type: ignore[misc]
    """Measures the test loss a few times along a training, the last time at its end."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._wanted = {round(setup.steps * part / POINTS) for part in range(1, POINTS + 1)}
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
        self.sums = self._setup.sums(model, self._setup.test)
        model.train()
        self.steps.append(state.global_step)
        self.losses.append(sum(self.sums) / counted_tokens(self._setup.test))
        self.seconds += time.perf_counter() - began


def _trainer(
    setup: Setup, plan: Plan, training: Training, model: Any, folder: str, measured: _Measured
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

    order = training_order(setup.training, count=setup.steps * setup.batch_size, seed=training.seed)
    rows = [
        {
            "input_ids": list(item.input_ids),
            "labels": [
                token if counted else IGNORED
                for token, counted in zip(item.input_ids, item.counted, strict=True)
            ],
        }
        for item in order
    ]
    tokenizer = setup.tokenizer
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    # Plans for other losses suggest their rates, and this is SFT.
    of_sft = plan.provenance.probes.objective in ("sft", "none")
    rates = plan.learning_rates if of_sft else suggested_rates("sft")
    device = next(model.parameters()).device
    arguments = SFTConfig(
        output_dir=folder, max_steps=setup.steps, per_device_train_batch_size=setup.batch_size,
        warmup_steps=max(1, setup.steps // 10), lr_scheduler_type="linear", max_grad_norm=1.0,
        weight_decay=0.0, seed=training.seed, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, max_length=None, use_cpu=device.type == "cpu",
        bf16=model.dtype == torch.bfloat16, fp16=False, gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    try:
        trainer = Ordered(
            model=model, args=arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            plan=plan, allow_other_weights=True, callbacks=[measured],
            full_lr=training.full_factor * rates.full.value,
            lora_lr=training.lora_factor * rates.lora.value,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"TRL cannot train this model: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer
