"""What a training has changed: a fine-tuned checkpoint or a PEFT adapter, read beside its base.

Updates are `U = W_base - W_trained`, as trials have them, so that a step down the gradient has
the gradient's sign. Nothing is loaded: one tensor of the base is held at a time, and with it
that of the checkpoint, or the factors of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from hlscore.errors import ModelError
from hlscore.inputs.adapter import Adapter, LowRank
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.modules import find_modules
from hlscore.inputs.stored_weights import Rows, StoredWeights, difference
from hlscore.paths import existing_path
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings, ModelSettings

_SHOWN = 3
# Root mean square of the rounding of a number to 16 bits, relative to the number: a spacing of
# 2^-7 (2^-10) within each power of two, `sqrt(spacing^2 / 24)` where mantissas are uniform.
_ROUNDING = {"bfloat16": 2.0**-7 / 24**0.5, "float16": 2.0**-10 / 24**0.5}


Update = torch.Tensor | LowRank


class Trained(Protocol):
    """What both kinds of trainings answer."""

    name: str
    notes: tuple[str, ...]

    def check(self, modules: Sequence[Candidate]) -> None:
        """Refuse a training of another model, before any weight is read."""

    def update(self, item: Candidate, base: Rows) -> Update | None:
        """How far a weight has moved from its base, base minus trained.

        Args:
            item: Whose weight it is.
            base: Rows of the weight of the base, in the layout of the module.

        Returns:
            float32 [E, p, q] or two factors; `None` where nothing was trained.
        """

    def rank_of(self, item: Candidate) -> int | None:
        """Rank of the LoRA that was trained; `None` for a weight trained in full or not at all."""

    def rounding(self, item: Candidate) -> float:
        """Rounding of the stored weight relative to it; 0 where the update itself is stored."""


def open_trained(name: str, base: StoredWeights, settings: ModelSettings) -> Trained:
    """Find a training and say what kind it is.

    Args:
        name: Directory or hub id of a fine-tuned model or of a PEFT adapter.
        base: The model that it started from.
        settings: How the base is read: the training is read in the same way.
    """
    # The revision is the base's own.
    named = replace(settings, model=name, revision=None)
    folder, local = find_adapter(named), existing_path(name)
    if folder is None and local is not None and not (local / "config.json").is_file():
        raise ModelError(
            f"'{name}' is not a finished fine-tune: it has neither config.json nor "
            "adapter_config.json.",
            hint="Give the folder that save_pretrained wrote; named adapters have one of their "
            "own.",
        )
    return Checkpoint(named) if folder is None else Adapter(name, folder, base)


class Checkpoint:
    """A whole model, trained in full or merged."""

    def __init__(self, settings: ModelSettings) -> None:
        self.name = settings.model
        self._stored = StoredWeights(settings)
        self.notes: tuple[str, ...] = ()

    @property
    def stored(self) -> StoredWeights:
        """Its files."""
        return self._stored

    def check(self, modules: Sequence[Candidate]) -> None:
        """Refuse a model of other names or shapes; see `Trained`."""
        own = {
            item.parameter: item
            for item in find_modules(self._stored.shape, CandidateSettings())
        }  # fmt: skip
        wrong = []
        for item in modules:
            found = own.get(item.parameter)
            if found is None or not self._stored.stored_as(item.parameter):
                wrong.append(f"it has no {item.parameter}")
            elif _sizes(found) != _sizes(item):
                wrong.append(f"{item.parameter} is {_shape(found)}, the base has {_shape(item)}")
        if wrong:
            more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise ModelError(
                f"'{self.name}' was not trained from this base model: "
                f"{'; '.join(wrong[:_SHOWN])}{more}.",
                hint="Name the model that the training started from.",
            )

    def update(self, item: Candidate, base: Rows) -> torch.Tensor | None:
        """How far a weight has moved; see `Trained`."""
        shape = self._stored.shape.get_parameter(item.parameter).shape
        return difference(shape, base, self._stored.rows(item.parameter))

    def rank_of(self, item: Candidate) -> None:
        """Nothing says what was trained how; see `Trained`."""
        del item

    def rounding(self, item: Candidate) -> float:
        """Rounding of the files; see `Trained`."""
        return _ROUNDING.get(self._stored.dtype([item]), 0.0)


def _sizes(item: Candidate) -> tuple[object, ...]:
    return item.matrices, item.out_features, item.in_features, item.storage


def _shape(item: Candidate) -> str:
    size = f"{item.out_features} x {item.in_features}"
    return size if item.matrices == 1 else f"{item.matrices} x {size}"
