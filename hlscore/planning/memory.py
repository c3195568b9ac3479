"""The memory of trainings, in bytes: weights, gradients, optimizer state, copies, activations.

Frozen weights have 16 bits, or 4 or 8 where a linear layer is packed. What is trained is kept in
the precision of `master`, and so are its gradients and moments; 8-bit moments have scales, and
those of embeddings and small tensors stay in 32 bits. PEFT keeps a frozen 16-bit copy of every
module that is trained in full, which is never packed.

Everything but the activations is a sum over tensors. The tests compare it with the tensors of
real training steps: equal for a 16-bit base, within 8 bytes per layer for a packed one. Left out
are step counters and tables that all layers share, and what allocators round up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from math import prod
from operator import add
from typing import Literal

from hlscore.errors import BudgetError
from hlscore.packing import packed_bytes
from hlscore.planning.budget import Budget, parse_budget
from hlscore.records import (
    Matrix,
    ModelDimensions,
    ModelIdentity,
    ModelShape,
    ParameterSize,
    tied_modules,
)
from hlscore.settings import MemorySettings, PlanSettings

Mode = Literal["full", "lora", "frozen"]

_FROZEN_BYTES = 2
_BLOCK = 256  # bitsandbytes keeps one float32 scale per 256 8-bit moments,
_SMALL = 4096  # and float32 moments for tensors with fewer numbers than this.
_MOMENTS = {"adamw": 2, "adamw8bit": 2, "lion": 1, "lion8bit": 1, "sgd": 0, "sgd-momentum": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is done with one module."""

    row: Matrix
    mode: Mode
    rank: int = 0  # LoRA rank; 0 unless the mode is `lora`

    def __str__(self) -> str:
        """The choice in words."""
        mode = f"LoRA of rank {self.rank}" if self.mode == "lora" else self.mode
        return f"{self.row.module}: {mode}"

    @property
    def lock(self) -> str:
        """The choice as a value of `--lock`."""
        return f"{self.row.module}={f'rank:{self.rank}' if self.mode == 'lora' else self.mode}"

    @property
    def trained_params(self) -> int:
        """Parameters that the mode trains."""
        if self.mode == "full":
            return self.row.n_params
        return lora_params(self.row, self.rank) if self.mode == "lora" else 0


def lora_params(row: Matrix, rank: int) -> int:
    """Parameters of a LoRA adapter of a given rank: `r (out + in)` per matrix."""
    return row.matrices * rank * (row.out_features + row.in_features)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Training memory in bytes."""

    frozen_bytes: int = 0  # weights that are not trained
    copy_bytes: int = 0  # frozen copies that PEFT keeps of modules trained in full
    full_bytes: int = 0  # weights trained in full
    adapter_bytes: int = 0  # weights of the adapters
    gradient_bytes: int = 0  # gradients of everything trained
    optimizer_bytes: int = 0  # state of the optimizer
    activation_bytes: int = 0  # activations and logits, an estimate

    def __add__(self, other: MemoryUse) -> MemoryUse:
        """Use by use."""
        return MemoryUse(*map(add, astuple(self), astuple(other)))

    @property
    def state_bytes(self) -> int:
        """Everything but the activations."""
        return self.total_bytes - self.activation_bytes

    @property
    def total_bytes(self) -> int:
        """The sum of all."""
        return sum(astuple(self))


def memory_use(
    model: ModelIdentity | ModelShape, choices: Iterable[Choice], settings: MemorySettings
) -> MemoryUse:
    """Memory of a training with PEFT that does with each module what is chosen for it."""
    frozen = MemoryUse(
        frozen_bytes=base_bytes(model, settings),
        activation_bytes=activation_bytes(model.dimensions, settings),
    )
    return sum((extra_use(choice, settings) for choice in choices), start=frozen)


def full_training(
    model: ModelIdentity | ModelShape, parameters: Iterable[ParameterSize], settings: MemorySettings
) -> MemoryUse:
    """Memory of plain full fine-tuning: no PEFT, no copies, nothing packed."""
    weights = settings.master_bytes * model.n_params
    return MemoryUse(
        full_bytes=weights,
        gradient_bytes=weights,
        optimizer_bytes=sum(item.count * _state_bytes(item, settings) for item in parameters),
        activation_bytes=activation_bytes(
            model.dimensions, settings, residual_bytes=settings.master_bytes
        ),
    )


def extra_use(choice: Choice, settings: MemorySettings) -> MemoryUse:
    """What training a module takes on top of leaving it frozen, whose bytes it saves."""
    row = choice.row
    if choice.mode == "frozen":
        return MemoryUse()
    trained = settings.master_bytes * choice.trained_params
    if choice.mode == "lora":
        rank = choice.rank * row.matrices
        down, up = (rank, row.in_features), (row.out_features, rank)
        state = sum(_state_bytes(ParameterSize(shape=shape), settings) for shape in (down, up))
        return MemoryUse(adapter_bytes=trained, gradient_bytes=trained, optimizer_bytes=state)
    experts, weights = row.form == "experts", row.out_features * row.in_features
    stack = (row.matrices,) if experts else ()
    weight = (*stack, row.out_features, row.in_features)
    state = _state_bytes(ParameterSize(shape=weight, embedding=row.form == "embedding"), settings)
    if bias := row.n_params - prod(weight):
        state += _state_bytes(ParameterSize(shape=(*stack, bias // row.matrices)), settings)
    frozen = _FROZEN_BYTES * row.n_params
    if settings.base_bits < 16 and row.form in ("linear", "conv1d") and row.layer is not None:
        packed = packed_bytes(weights, row.out_features, settings.base_bits)
        frozen = packed + _FROZEN_BYTES * (row.n_params - weights)
    return MemoryUse(
        frozen_bytes=-frozen,
        copy_bytes=_FROZEN_BYTES * row.n_params,
        full_bytes=trained,
        gradient_bytes=trained,
        optimizer_bytes=state,
    )


def base_bytes(model: ModelIdentity | ModelShape, settings: MemorySettings) -> int:
    """Bytes of the weights when nothing is trained."""
    sizes = model.dimensions
    if settings.base_bits == 16:
        return _FROZEN_BYTES * model.n_params
    packed = packed_bytes(sizes.packable_params, sizes.packable_rows, settings.base_bits)
    return packed + _FROZEN_BYTES * (model.n_params - sizes.packable_params)


def activation_bytes(
    sizes: ModelDimensions, settings: MemorySettings, *, residual_bytes: int = _FROZEN_BYTES
) -> int:
    """Estimate activations and logits of one step.

    Assumed are activation checkpointing of every block, bfloat16 autocast, attention that keeps
    no score matrix (SDPA), and the plain cross-entropy of transformers. Then the peak is in the
    loss or in the block that is recomputed, whichever is larger, on top of the kept inputs:

        tokens x residual x hidden x blocks
        + max(tokens x (12 x vocabulary + 6 x hidden),
              tokens x 6 x widths of the widest block + 8/3 x its expert parameters)

    The loss holds float32 logits, their gradient and the softmax at a time. A block keeps a
    16-bit copy of what goes into and out of each linear map, and about as much again in
    residuals, norms and what PEFT casts. Trained expert stacks are materialized: merged or cast
    weights of a whole block, and the gradient of one of its tensors. Measured against
    real code in `benchmarks/memory.py`.

    Not in it: the 16-bit copies that autocast makes of float32 weights in the forward pass. They
    are gone before the backward pass fills the gradients, which take twice their room, and so
    lie below the sum of all; only while gradients are accumulated over several batches do they
    come on top. Nor what a fused or chunked loss saves, or padding masks and score matrices add.

    Args:
        residual_bytes: Of each number in the residual stream: those of the embedding's weights.
    """
    tokens, hidden = settings.train_batch * settings.train_length, sizes.hidden_size
    kept = tokens * residual_bytes * hidden * sizes.blocks
    loss = tokens * (12 * sizes.vocab_size + 6 * hidden)
    block = tokens * 6 * sizes.block_widths + 8 * sizes.expert_params // 3
    return kept + max(loss, block)


def _state_bytes(item: ParameterSize, settings: MemorySettings) -> int:
    """What the optimizer keeps of a parameter."""
    shape, numbers = item.shape, prod(item.shape)
    if settings.optimizer == "adafactor":  # float32 means over rows and over columns
        factored = len(shape) > 1
        return 4 * (numbers // shape[-1] + numbers // shape[-2] if factored else numbers)
    moments = _MOMENTS[settings.optimizer]
    if settings.optimizer == "lion":  # bitsandbytes keeps it in float32
        return 4 * numbers
    if settings.optimizer.endswith("8bit"):
        # The trainer of transformers keeps the moments of embeddings in 32 bits.
        wide = item.embedding or numbers < _SMALL
        return moments * (4 * numbers if wide else numbers + 4 * -(-numbers // _BLOCK))
    return moments * settings.master_bytes * numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """One way to train a model, and what it takes."""

    # Every parameter without PEFT, LoRA on every candidate, or a hybrid of both.
    kind: Literal["full", "lora", "hybrid"]
    # Which modules a hybrid trains in full: the `smallest` or `largest` by the memory they add, or
    # a share of each (`proportional`); empty for the others.
    which: str = ""
    full_modules: int | None = None  # candidates in full; `None` where that depends on which
    base_bits: int = 16  # of each frozen weight of a linear layer
    trained_params: int
    memory: MemoryUse


def check_budget(budget: str) -> Budget:
    """Read the budget of an estimate, before a model is built."""
    found = parse_budget(budget)
    if found.unit == "bytes":
        raise BudgetError(
            f"The budget '{budget}' is training memory, which is what estimate tells.",
            hint=f"Use --gpu {budget} to see what fits, and --budget 0.1, 0.1p or 500M.",
        )
    return found


def estimate_trainings(shape: ModelShape, settings: PlanSettings) -> tuple[TrainingMemory, ...]:
    """Estimate full fine-tuning, LoRA, and the hybrids of a budget; these also with a 4-bit base.

    Which modules a hybrid trains in full is not known without scores. A budget of modules gives
    the hybrid with the cheapest modules and that with the dearest, between which every other
    lies; a budget of parameters gives one that trains the same share of every module in full,
    from which a plan of whole modules differs by little.
    """
    budget, memory, candidates = check_budget(settings.budget), settings.memory, shape.candidates
    sizes = [item.n_params for item in candidates]
    budget.check_one_fits(sizes)
    most, tied = budget.limit(sizes), tied_modules(shape.modules)
    full = [Choice(row=item, mode="full") for item in candidates]
    lora = [
        Choice(row=item, mode="frozen")  # LoRA on a tied weight merges wrongly
        if item.module in tied
        else Choice(row=item, mode="lora", rank=settings.rank)
        for item in candidates
    ]
    use = full_training(shape, shape.parameters, memory)
    found = [TrainingMemory(kind="full", trained_params=shape.n_params, memory=use)]

    def training(choices: list[Choice], base: MemorySettings, which: str = "") -> TrainingMemory:
        return TrainingMemory(
            kind="hybrid" if which else "lora",
            which=which,
            full_modules=sum(item.mode == "full" for item in choices),
            base_bits=base.base_bits,
            trained_params=sum(item.trained_params for item in choices),
            memory=memory_use(shape, choices, base),
        )

    for base in dict.fromkeys((memory, replace(memory, base_bits=4))):
        found.append(training(lora, base))
        if budget.unit == "parameters":
            share, none = min(1.0, most / sum(sizes)), found[-1]
            every = training(full, base, "proportional")
            trained, *uses = (
                round((1 - share) * least + share * whole)
                for least, whole in zip(
                    (none.trained_params, *astuple(none.memory)),
                    (every.trained_params, *astuple(every.memory)),
                    strict=True,
                )
            )
            use = MemoryUse(*uses)
            found.append(replace(every, full_modules=None, trained_params=trained, memory=use))
            continue
        surcharges = [
            extra_use(one, base).total_bytes - extra_use(other, base).total_bytes
            for one, other in zip(full, lora, strict=True)
        ]
        for which in ("smallest", "largest"):
            order = sorted(range(len(full)), key=surcharges.__getitem__, reverse=which == "largest")
            chosen = set(order[:most])
            choices = [full[at] if at in chosen else lora[at] for at in range(len(full))]
            found.append(training(choices, base, which))
    return tuple(found)
