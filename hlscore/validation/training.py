"""One short training with TRL's SFTTrainer, and its outcome."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hlscore.artifacts.plan import Plan
from hlscore.errors import ModelError, first_line
from hlscore.exporters.exporter import Export
from hlscore.objectives.likelihood import IGNORED
from hlscore.probes.units import ProbeExample, counted_tokens, example_sums
from hlscore.settings import ValidateSettings
from hlscore.validation.arms import Arm

POINTS = 8  # how often the test loss of a training is measured
# Tries of one rate beyond the first three. The suggested rates suit large models; a small one can
# want some hundred times as much.
MOST_EXTENSIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Which training it is."""

    arm: str  # name of the arm
    seed: int  # seed of its examples and adapters
    full_factor: float = 1.0  # what the suggested learning rate of modules in full is multiplied by
    lora_factor: float = 1.0  # the same for adapters; they have rates of their own in every trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a training."""

    training: Training
    steps: tuple[int, ...]  # steps after which the test loss was measured
    curve: tuple[float, ...]  # test loss there, nats per counted token
    tuning_loss: float  # loss on the tuning examples at the end; NaN where it diverged
    sums: tuple[float, ...]  # loss of each test example at the end, nats
    seconds: float  # wall time of the steps, without measuring
    measuring_seconds: float
    also_sums: tuple[float, ...] = ()  # loss of each example of the other data at the end, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """All trainings of a plan and its baselines, ready to start."""

    settings: ValidateSettings
    plan: Plan
    model: PreTrainedModel  # the base model; it is copied, never changed
    tokenizer: PreTrainedTokenizerBase
    pad_token_id: int
    training: tuple[ProbeExample, ...]
    tuning: tuple[ProbeExample, ...]  # examples that choose the learning rates
    test: tuple[ProbeExample, ...]  # examples whose loss is reported
    also: tuple[ProbeExample, ...]  # examples of other data, on which forgetting is measured
    arms: tuple[Arm, ...]
    made_with: Mapping[str, object]  # all that decides the outcome, as plain data
    notes: tuple[str, ...]  # remarks on model and data

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the trainings that are reported."""
        return tuple(range(self.settings.seed, self.tuning_seed))

    @property
    def tuning_seed(self) -> int:
        """Seed of the trainings that choose learning rates, none of those that are reported."""
        return self.settings.seed + self.settings.seeds

    @property
    def trainings(self) -> tuple[int, int]:
        """Trainings when every search for rates ends where it begins, and at most."""
        rates = sum(arm.rates.count(True) for arm in self.arms)
        fewest = len(self.arms) * (1 + self.settings.seeds) + 2 * rates
        return fewest, fewest + rates * MOST_EXTENSIONS

    def sums(self, model: torch.nn.Module, examples: Sequence[ProbeExample]) -> list[float]:
        """Loss of each example under a model, nats summed over its counted tokens."""
        size = 4 * self.settings.batch_size
        return example_sums(model, examples, self.pad_token_id, batch_size=size)

    def loss(self, model: torch.nn.Module, examples: Sequence[ProbeExample]) -> float:
        """Mean loss under a model, nats per counted token."""
        return sum(self.sums(model, examples)) / counted_tokens(examples)


def train(validation: Validation, training: Training, *, steps: int) -> Outcome:
    """Train a copy of the model as the arm's plan says, with AdamW without weight decay.

    The learning rates rise over a tenth of the steps and fall linearly to zero; gradients are
    clipped at norm 1.
    """
    from hlscore.training.apply import apply

    torch.manual_seed(training.seed)
    plan = next(arm for arm in validation.arms if arm.name == training.arm).plans[training.seed]
    measured = _Measured(validation, steps)
    with (
        tempfile.TemporaryDirectory(prefix="hlscore-validate-") as folder,
        warnings.catch_warnings(),
    ):
        # The trainer warns of its own deprecated options.
        warnings.simplefilter("ignore", FutureWarning)
        model = apply(copy.deepcopy(validation.model), plan, allow_other_weights=True)
        trainer = _trainer(validation, plan, training, model, folder, measured)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began - measured.seconds
    model.eval()
    return Outcome(
        training=training,
        steps=tuple(measured.steps),
        curve=tuple(measured.losses),
        tuning_loss=validation.loss(model, validation.tuning),
        sums=tuple(measured.sums),
        seconds=seconds,
        measuring_seconds=measured.seconds,
        also_sums=tuple(validation.sums(model, validation.also)),
    )


def training_order(
    examples: Sequence[ProbeExample], *, count: int, seed: int
) -> list[ProbeExample]:
    """So many examples, epoch after epoch, each in an order of its own; the same for every arm."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // len(examples))
    places = np.concatenate([rng.permutation(len(examples)) for _ in range(epochs)])
    return [examples[place] for place in places[:count]]


class _Measured(TrainerCallback):  # type: ignore[misc]
    """Measures the test loss a few times along a training, the last time at its end."""

    def __init__(self, validation: Validation, steps: int) -> None:
        self._validation, self.total_steps = validation, steps
        self._wanted = {round(steps * part / POINTS) for part in range(1, POINTS + 1)}
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
        self.sums = self._validation.sums(model, self._validation.test)
        model.train()
        self.steps.append(state.global_step)
        self.losses.append(sum(self.sums) / counted_tokens(self._validation.test))
        self.seconds += time.perf_counter() - began


def _trainer(
    validation: Validation,
    plan: Plan,
    training: Training,
    model: Any,
    folder: str,
    measured: _Measured,
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

    steps, batch_size = measured.total_steps, validation.settings.batch_size
    count = steps * batch_size
    order = training_order(validation.training, count=count, seed=training.seed)
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
    tokenizer = validation.tokenizer
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    full_rate, lora_rate = Export(plan=plan).rates("sft")
    device = next(model.parameters()).device
    arguments = SFTConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=batch_size,
        warmup_steps=max(1, steps // 10), lr_scheduler_type="linear", max_grad_norm=1.0,
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
            full_lr=training.full_factor * full_rate, lora_lr=training.lora_factor * lora_rate,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"TRL cannot train this model: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer
