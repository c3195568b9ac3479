"""Weights of a checkpoint, read from its files one after the other: the model is never loaded.

Names and shapes come from the configuration. Checkpoints that keep their tensors under other
names, or in other pieces, go through transformers' own table of conversions, one parameter at a
time: at most the pieces of one parameter are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from hlscore.errors import ModelError, first_line
from hlscore.inputs.identity import identify, sampled_bytes
from hlscore.inputs.model import BELONG_TOGETHER, load_shape, loading_notes, renamer, unfit
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.placement import quantization
from hlscore.inputs.tensor_files import DTYPES, NewTensor, StoredTensor, sample_hash, stored_tensors
from hlscore.inputs.weights import tied_names
from hlscore.records import Candidate, ModelIdentity
from hlscore.settings import ModelSettings

_PART_NUMBERS = 2**18

Rows = Callable[[int, int], torch.Tensor]
"""Gives the rows from one number up to another of a weight whose leading sizes are joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the files hold of some parameters."""

    # Names in the model, that of the tensors first: several names of one tied weight, or what one
    # conversion makes.
    parameters: tuple[str, ...]
    tensors: list[str]  # names of the tensors in the files
    # Transformers' conversion with the tensors filed in it; `None` where the one tensor is the
    # weight.
    converter: Any = None


class StoredWeights:
    """The weights of a checkpoint that is not loaded.

    Attributes:
        shape: The model on the meta device.
        tensors: Tensors of the files by the names that they have there.
        sources: Where each parameter comes from, by its name in the model.
    """

    def __init__(self, settings: ModelSettings) -> None:
        from transformers.core_model_loading import dot_natural_key

        self.shape, self._found = load_shape(settings, weights=True)
        self.name, self.directory = settings.model, self._found.files.directory
        packed = quantization(self.shape.config)
        if packed:
            raise ModelError(
                f"'{self.name}' is quantized ({packed['quant_method']}): its weights cannot be "
                "read one by one.",
                hint="Name the checkpoint it was made from, or rank it with probes.",
            )
        if not any(self.directory.glob("*.safetensors")):
            raise ModelError(
                f"'{self.name}' has no .safetensors file, and only those can be read one by one.",
                hint="Convert it: load it with transformers and save_pretrained(DIRECTORY).",
            )
        self.tensors = stored_tensors(self.directory)
        self._held = self.shape.state_dict()
        self._current_name = renamer(self.shape)

        # File each tensor under the parameters that it belongs to, as transformers does.
        found: dict[str, Source] = {}
        for name in sorted(self.tensors, key=dot_natural_key):
            target, conversion = self._current_name(name)
            if target not in self._held:
                continue
            if target not in found:
                entry, targets = None, [target]
                if conversion is not None:
                    entry, first = conversion[1], conversion[1].target_patterns[0]
                    targets = [target.replace(first, other) for other in entry.target_patterns]
                found[target] = Source(
                    parameters=tuple(targets), tensors=[], converter=deepcopy(entry)
                )
            found[target].tensors.append(name)
            if conversion is not None:
                found[target].converter.add_tensor(
                    target, name, conversion[0], self.tensors[name].read
                )
        tied = tied_names(self.shape)
        for target, source in found.items():
            if source.converter is None:
                # Its other names, where no tensor is filed under them.
                others = {tied.get(target)} | {name for name, to in tied.items() if to == target}
                more = sorted(name for name in others if name and name not in found)
                found[target] = replace(source, parameters=(target, *more))
        self.sources = {name: source for source in found.values() for name in source.parameters}

    def current_name(self, name: str) -> str | None:
        """Name in the model of what a file may call otherwise; `None` where it is not there."""
        if name in self._held:
            return name
        target, conversion = self._current_name(name)
        return target if conversion is None and target in self._held else None

    def weight(self, parameter: str) -> torch.Tensor:
        """One weight as the model would hold it, in the dtype of the files."""
        weight = self._made(self.sources[parameter], [parameter])[parameter]
        self._check_shape(parameter, weight.shape, weight.dtype)
        return weight

    def rows(self, parameter: str) -> Rows:
        """Parts of a weight, read when asked for; one made of several tensors is held whole."""
        source = self.sources[parameter]
        if source.converter is not None:
            weight = self.weight(parameter)
            flat = weight.reshape(-1, weight.shape[-1])
            return lambda start, stop: flat[start:stop]
        tensor = self.tensors[source.tensors[0]]
        if tensor.dtype in DTYPES:
            self._check_shape(parameter, tensor.shape, getattr(torch, DTYPES[tensor.dtype]))
        return tensor.rows

    def identity(self, weights_hash: str = "") -> ModelIdentity:
        """Describe the model for the artifacts; `read` gives the hash of the weights."""
        notes = loading_notes(self.shape, self._found)
        revision = self._found.files.revision
        return identify(self.shape, self.name, revision, notes=notes, weights_hash=weights_hash)

    def named_tensors(self) -> dict[str, StoredTensor | NewTensor]:
        """Tensors by their names in the model; those made of several are made when written."""
        found: dict[str, StoredTensor | NewTensor] = {}
        for name, held in self._held.items():
            source = self.sources.get(name)
            if source is None:
                continue
            part = self.tensors[source.tensors[0]]
            found[name] = part
            if source.converter is not None:
                width, chunks = part.size // math.prod(part.shape), partial(self._bytes_of, name)
                shape, size = tuple(held.shape), width * held.numel()
                found[name] = NewTensor(dtype=part.dtype, shape=shape, size=size, chunks=chunks)
        return found

    def _bytes_of(self, parameter: str) -> Iterator[bytes]:
        yield self.weight(parameter).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    def dtype(self, modules: Sequence[Candidate]) -> str:
        """Dtype that most of the tensors of some modules are stored in, such as `bfloat16`."""
        found = [
            self.tensors[name].dtype
            for item in modules
            for name in self.sources[item.parameter].tensors
        ]
        most = max(sorted(set(found)), key=found.count)
        return DTYPES.get(most, most)

    def check(self, modules: Sequence[Candidate]) -> None:
        """Refuse files that lack the weight of a module, before any is read."""
        missing = sorted(item.parameter for item in modules if item.parameter not in self.sources)
        if missing:
            raise unfit(self.name, "lack", missing)

    def read(
        self, modules: Sequence[Candidate], use: Callable[[Candidate, list[torch.Tensor]], None]
    ) -> str:
        """Hand over one weight after the other, in the order of their names in the files.

        Args:
            use: Called with each of the modules and its weight: a list of one, from which it can
                be taken to be freed early.

        Returns:
            Hash over sampled weights, as in the fingerprint of the loaded model.
        """
        wanted = {item.parameter: item for item in modules}
        sampled = candidates_of(find_modules(self.shape))
        known = wanted | {item.parameter: item for item in sampled}
        self.check(tuple(known.values()))
        samples: dict[str, bytes] = {}
        for first, source in self.sources.items():
            names = sorted(known.keys() & set(source.parameters))
            if not names or first != source.parameters[0]:
                continue
            made = self._made(source, names)
            for name in names:
                held = [made.pop(name)]
                self._check_shape(name, held[0].shape, held[0].dtype)
                samples[name] = sampled_bytes(held[0])
                if name in wanted:
                    use(wanted[name], held)
                held.clear()  # not two at a time
        return sample_hash({item.parameter: samples[item.parameter] for item in sampled})

    def _made(self, source: Source, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Some weights of a source, by name."""
        if source.converter is None:
            return dict.fromkeys(names, self.tensors[source.tensors[0]].read())
        try:
            # A copy: the tensors that are filed in a converter can be taken out once.
            found: dict[str, Any] = deepcopy(source.converter).convert(
                source.parameters[0], model=self.shape, config=self.shape.config
            )
        except Exception as error:
            raise ModelError(
                f"{source.parameters[0]} of '{self.name}' cannot be put together from "
                f"{len(source.tensors)} tensors: {first_line(error)}",
                hint=BELONG_TOGETHER,
            ) from error
        made = {name: found.pop(name) for name in names}
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def _check_shape(self, name: str, found: Sequence[int], dtype: torch.dtype) -> None:
        planned = self.shape.get_parameter(name).shape
        if tuple(found) != tuple(planned) or not dtype.is_floating_point:
            kind = str(dtype).removeprefix("torch.")
            sizes = f"({list(found)} {kind} in the file, {list(planned)} by config.json)"
            raise unfit(self.name, "have the wrong shape for", [f"{name} {sizes}"])


def difference(
    shape: Sequence[int], base: Rows, trained: Iterable[torch.Tensor]
) -> torch.Tensor | None:
    """A weight minus another of the same shape, [p, q] or [E, p, q], a few rows at a time.

    Args:
        trained: Consecutive rows of the other weight.

    Returns:
        float32 [E, p, q]; `None` where they are equal.
    """
    found = torch.empty(math.prod(shape[:-1]), shape[-1])
    start, moved = 0, False
    for part in trained:
        rows = found[start : start + len(part)]
        torch.sub(base(start, start + len(part)).float(), part.float(), out=rows)
        moved = moved or bool(rows.any())
        start += len(part)
    return found.reshape(-1, *shape[-2:]) if moved else None


def in_parts(shape: Sequence[int], rows: Rows) -> Iterator[torch.Tensor]:
    """A weight, some consecutive rows at a time."""
    count, step = math.prod(shape[:-1]), max(1, _PART_NUMBERS // shape[-1])
    for start in range(0, count, step):
        yield rows(start, min(count, start + step))
