"""What a training has changed: a fine-tuned checkpoint or a PEFT adapter, read beside its base.

Updates are `U = W_base - W_trained`, as trials have them, so that a step down the gradient has
the gradient's sign. Nothing is loaded: one tensor of the base is held at a time, and with it
that of the checkpoint, or the factors of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import torch

from hlscore.errors import ModelError
from hlscore.inputs.adapter import Adapter, LowRank
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.modules import find_modules
from hlscore.inputs.stored_weights import Rows, StoredWeights, difference, in_parts
from hlscore.paths import existing_path
from hlscore.records import Candidate
from hlscore.settings import ModelSettings
from hlscore.wording import first_of

# Root mean square of the rounding of a number to 16 bits, relative to the number: a spacing of
# 2^-7 (2^-10) within each power of two, `sqrt(spacing^2 / 24)` where mantissas are uniform.
_ROUNDING = {"bfloat16": 2.0**-7 / 24**0.5, "float16": 2.0**-10 / 24**0.5}


_sizes = attrgetter("matrices", "out_features", "in_features", "storage")


class Checkpoint:
    """A whole model, trained in full or merged."""

    notes: tuple[str, ...] = ()

    def __init__(self, settings: ModelSettings, modules: Sequence[Candidate]) -> None:
        self.name = settings.model
        self._stored = StoredWeights(settings)
        own = {item.parameter: item for item in find_modules(self._stored.shape)}
        wrong = []
        for item in modules:
            found = own.get(item.parameter)
            if found is None or item.parameter not in self._stored.sources:
                wrong.append(f"it has no {item.parameter}")
            elif _sizes(found) != _sizes(item):
                wrong.append(f"{item.parameter} is {found.size}, the base has {item.size}")
        if wrong:
            raise ModelError(
                f"'{self.name}' was not trained from this base model: {first_of(wrong, 3, '; ')}.",
                hint="Name the model that the training started from.",
            )

    def update(self, item: Candidate, base: Rows) -> torch.Tensor | None:
        """Base minus trained weight, float32 [E, p, q]; `None` where they are equal.

        Args:
            base: Rows of the weight of the base, in the layout of the module.
        """
        shape = self._stored.shape.get_parameter(item.parameter).shape
        return difference(shape, base, in_parts(shape, self._stored.rows(item.parameter)))

    def rank_of(self, _item: Candidate) -> int | None:
        """Rank of the LoRA that was trained on a weight: a whole model does not say."""
        return None

    def rounding(self, item: Candidate) -> float:
        """Rounding of the stored weight relative to it; 0 where the update itself is stored."""
        return _ROUNDING.get(self._stored.dtype([item]), 0.0)


Trained = Checkpoint | Adapter
Update = torch.Tensor | LowRank


def open_trained(
    name: str, base: StoredWeights, settings: ModelSettings, modules: Sequence[Candidate] = ()
) -> Trained:
    """Open a training, a directory or hub id, and refuse one of another base model.

    Args:
        base: The model that it started from.
        settings: How the base is read; the training is read in the same way.
        modules: What a whole model must hold.
    """
    # The revision is the base's own.
    named = replace(settings, model=name, revision=None)
    folder, local = find_adapter(named), existing_path(name)
    if folder is not None:
        return Adapter(name, folder, base)
    if local is not None and not (local / "config.json").is_file():
        raise ModelError(
            f"'{name}' is not a finished fine-tune: it has neither config.json nor "
            "adapter_config.json.",
            hint="Give the folder that save_pretrained wrote; named adapters have one of their "
            "own.",
        )
    return Checkpoint(named, modules)
