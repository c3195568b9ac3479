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
    """What each way gets."""

    model: PreTrainedModel  # a copy of the model that nothing else uses
    probes: ProbeSet  # both halves of the probes
    halves: tuple[tuple[Batch, ...], ...]  # batches of each half, on the device of the model
    modules: tuple[Candidate, ...]  # every candidate weight
    rank: int  # LoRA rank
    batch_size: int  # examples per batch, at most
    rounds: int  # how often EVA, which goes on until its components hold still, may use a batch

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
    """What a way found."""

    scores: Mapping[str, float]  # one number per weight that it scores, by module name
    # Proof of the work done, for the result file.
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""  # the part of it that belongs in the table
    complete: bool = True  # whether it came to its end; if not, its time is a lower bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to score."""

    name: str  # name in the table
    what: str  # what its numbers are
    gradients: bool  # whether it computes gradients
    run: Callable[[Job], Outcome]  # does it


def make_job(
    model: PreTrainedModel, probes: ProbeSet, *, rank: int, batch_size: int, rounds: int = 3
) -> Job:
    """Batch the probes the way hlscore does: batches never cross its groups."""
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
