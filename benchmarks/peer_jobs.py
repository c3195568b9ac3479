"""What does every way to score modules get, and what does it give?

The record types of `python benchmarks/peers.py`; the ways themselves are in `peer_ways.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel

from hlscore.inputs.examples import cut
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.probes.units import Batch, ProbeExample, ProbeSet, by_length, collate
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What each way gets.

    Attributes:
        model: A copy of the model that nothing else uses.
        probes: Both halves of the probes.
        halves: Batches of each half, on the device of the model.
        modules: Every candidate weight.
        rank: LoRA rank.
        batch_size: Examples per batch, at most.
        rounds: How often EVA, which goes on until its components hold still, may use a batch.
    """

    model: PreTrainedModel
    probes: ProbeSet
    halves: tuple[tuple[Batch, ...], ...]
    modules: tuple[Candidate, ...]
    rank: int
    batch_size: int
    rounds: int

    @property
    def batches(self) -> tuple[Batch, ...]:
        """Batches of both halves."""
        return tuple(chain.from_iterable(self.halves))

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Weight parameter of each candidate by module name."""
        return {item.module: self.model.get_parameter(item.parameter) for item in self.modules}

    def linear_names(self) -> list[str]:
        """Names of candidates that are a module of a type PEFT can put a plain adapter on."""
        found = dict(self.model.named_modules())
        names = (item.module for item in self.modules if item.module in found)
        return [name for name in names if type(found[name]).__name__ in {"Linear", "Conv1D"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a way found.

    Attributes:
        scores: One number per weight that it scores, by module name.
        details: Proof of the work done, for the result file.
        note: The part of it that belongs in the table.
        complete: Whether it came to its end; if not, its time is a lower bound.
    """

    scores: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to score.

    Attributes:
        name: Name in the table.
        what: What its numbers are.
        gradients: Whether it computes gradients.
        run: Does it.
    """

    name: str
    what: str
    gradients: bool
    run: Callable[[Job], Outcome]


def make_job(
    model: PreTrainedModel, probes: ProbeSet, *, rank: int, batch_size: int, rounds: int = 3
) -> Job:
    """Batch the probes the way hlscore does: batches never cross its groups.

    Args:
        model: The model.
        probes: The probes.
        rank: LoRA rank.
        batch_size: Examples per batch, at most.
        rounds: How often EVA may use a batch.

    Returns:
        A job on the model itself.
    """
    device = model.get_input_embeddings().weight.device

    def batches(group: tuple[ProbeExample, ...]) -> Iterator[Batch]:
        for examples in cut(by_length(group), batch_size):
            yield collate(
                examples, pad_token_id=probes.pad_token_id, padding_side="right", device=device
            )

    return Job(
        model=model,
        probes=probes,
        halves=tuple(
            tuple(chain.from_iterable(batches(group) for group in half)) for half in probes.halves
        ),
        modules=candidates_of(find_modules(model, CandidateSettings())),
        rank=rank,
        batch_size=batch_size,
        rounds=rounds,
    )
