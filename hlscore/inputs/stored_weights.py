"""Weights of a checkpoint, read from its files one after the other: the model is never loaded.

Names and shapes come from the configuration. Checkpoints that keep their tensors under other
names, or in other pieces, go through transformers' own table of conversions, one parameter at a
time: at most the pieces of one parameter are in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hlscore.errors import ModelError, first_line
from hlscore.inputs.hub import find_model
from hlscore.inputs.identity import identity_of, sampled_bytes, structure_hash
from hlscore.inputs.model import check_safetensors, loading_notes, shape_of
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.placement import quantization_method
from hlscore.inputs.tensor_files import StoredTensor, stored_tensors
from hlscore.inputs.tied import Renamer, renamer
from hlscore.inputs.weights import tied_names
from hlscore.records import Candidate, Fingerprint, ModelIdentity
from hlscore.settings import CandidateSettings, ModelSettings

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

_CHUNK_NUMBERS = 2**18

Rows = Callable[[int, int], torch.Tensor]
"""Gives the rows from one number up to another of a weight whose leading sizes are joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where some parameters come from.

    Attributes:
        parameters: Names in the model; the first one is the one that its tensors are filed under.
        tensors: Names of the tensors in the files.
        converter: Transformers' conversion with the tensors filed in it; `None` for a mere copy.
    """

    parameters: tuple[str, ...]
    tensors: list[str]
    converter: Any


class StoredWeights:
    """The weights of a checkpoint that is not loaded."""

    def __init__(self, settings: ModelSettings) -> None:
        self._files = find_model(settings, weights=True)
        self._name = settings.model
        self.shape = shape_of(self._files, settings)
        self._notes = loading_notes(self.shape, self._files, settings)
        method = quantization_method(self.shape.config)
        if method:
            raise ModelError(
                f"'{settings.model}' is quantized ({method}): its weights cannot be read one by "
                "one.",
                hint="Name the checkpoint it was made from, or rank it with probes.",
            )
        if not any(self._files.directory.glob("*.safetensors")):
            raise ModelError(
                f"'{settings.model}' has no .safetensors file, and only those can be read one by "
                "one.",
                hint="Convert it: load it with transformers and save_pretrained(DIRECTORY).",
            )
        check_safetensors(self._files.directory, settings.model)
        self._tensors = stored_tensors(self._files.directory)
        self._held = self.shape.state_dict()
        self._current_name = renamer(self.shape)
        self._sources = _sources(self.shape, self._tensors, self._current_name, self._read)
        self._source_of = {name: source for source in self._sources for name in source.parameters}

    @property
    def directory(self) -> Path:
        """Folder of the checkpoint."""
        return self._files.directory

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Tensors of the files by the names that they have there."""
        return self._tensors

    def stored_as(self, parameter: str) -> tuple[str, ...]:
        """Names in the files of the tensors that a parameter is made of; empty where none is."""
        source = self._source_of.get(parameter)
        return () if source is None else tuple(source.tensors)

    def shares(self, parameter: str) -> set[str]:
        """Names of all parameters that are the same weight: its own, and those tied to it."""
        source = self._source_of.get(parameter)
        return {parameter} if source is None or source.converter else set(source.parameters)

    def is_copy(self, parameter: str) -> bool:
        """Whether a parameter is a tensor of the files, and not put together from several."""
        source = self._source_of.get(parameter)
        return source is not None and source.converter is None

    def current_name(self, name: str) -> str | None:
        """Name in the model of what a file may call otherwise; `None` where it is not there."""
        if name in self._held:
            return name
        target, pattern = self._current_name(name)
        return target if pattern is None and target in self._held else None

    def weight(self, parameter: str) -> torch.Tensor:
        """Read one weight as the model would hold it.

        Returns:
            The weight, in the dtype of the files.
        """
        source = self._source_of[parameter]
        if source.converter is None:
            weight = self._read(source.tensors[0])
        else:
            weight = self._converted(source)[parameter]
            weight = weight.pop() if isinstance(weight, list) else weight
        self._check_shape(parameter, weight)
        return weight

    def rows(self, parameter: str) -> Rows:
        """Read parts of a weight: the files are read again for each, so that no whole is held.

        A weight that is put together from several tensors is held whole.
        """
        source = self._source_of[parameter]
        if source.converter is not None:
            return rows_of(self.weight(parameter))
        tensor = self._tensors[source.tensors[0]]
        if tensor.dtype in _DTYPES:
            kind = _DTYPES[tensor.dtype]
            self._check_shape(parameter, torch.empty(tensor.shape, dtype=kind, device="meta"))
        return partial(read_rows, tensor)

    def identity(self, weights_hash: str = "") -> ModelIdentity:
        """Describe the model for the artifacts.

        Args:
            weights_hash: What `read` gave in the end.
        """
        structure = structure_hash(candidates_of(find_modules(self.shape, CandidateSettings())))
        fingerprint = Fingerprint(structure=structure, weights=weights_hash)
        found = identity_of(self.shape, self._name, self._files.revision, fingerprint)
        return replace(found, notes=self._notes)

    def dtype(self, modules: Sequence[Candidate]) -> str:
        """Dtype that most of the tensors of some modules are stored in, such as `bfloat16`."""
        found = [
            self._tensors[name].dtype for item in modules for name in self.stored_as(item.parameter)
        ]
        known = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        most = max(sorted(set(found)), key=found.count)
        return known.get(most, most)

    def check(self, modules: Sequence[Candidate]) -> None:
        """Refuse files that lack the weight of a module, before any is read."""
        missing = sorted(
            item.parameter for item in modules if item.parameter not in self._source_of
        )
        if missing:
            number = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors, first"
            raise ModelError(
                f"The weights of '{self._name}' lack {number} {missing[0]}.",
                hint="Check that config.json and the weights belong together.",
            )

    def read(
        self, modules: Sequence[Candidate], use: Callable[[Candidate, list[torch.Tensor]], None]
    ) -> str:
        """Hand over one weight after the other, in the order of their names in the files.

        Args:
            modules: Candidates whose weights are wanted.
            use: Called with each of them and its weight, as the model would hold it: a list of
                one, from which it can be taken to be freed early.

        Returns:
            Hash over sampled weights, as in the fingerprint of the loaded model.
        """
        wanted = {item.parameter: item for item in modules}
        sampled = candidates_of(find_modules(self.shape, CandidateSettings()))
        known = wanted | {item.parameter: item for item in sampled}
        self.check(tuple(known.values()))
        samples: dict[str, bytes] = {}
        for name, weight in self._weights(set(known)):
            self._check_shape(name, weight)
            samples[name] = sampled_bytes(weight)
            held = [weight]
            del weight  # not two at a time
            if name in wanted:
                use(wanted[name], held)
            held.clear()
        found = hashlib.sha256()
        for item in sorted(sampled, key=lambda item: item.parameter):
            found.update(samples[item.parameter])
        return f"sha256:{found.hexdigest()}"

    def _weights(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for source in self._sources:
            if not names & set(source.parameters):
                continue
            if source.converter is None:
                for name in sorted(names & set(source.parameters)):
                    yield name, self._read(source.tensors[0])
                continue
            made = self._converted(source)
            for name in sorted(names & set(made)):
                weight = made.pop(name)
                yield name, weight.pop() if isinstance(weight, list) else weight
                del weight
            del made

    def _converted(self, source: _Source) -> dict[str, Any]:
        try:
            # A copy: the tensors that are filed in a converter can be taken out once.
            found: dict[str, Any] = deepcopy(source.converter).convert(
                source.parameters[0], model=self.shape, config=self.shape.config
            )
        except Exception as error:
            raise ModelError(
                f"{source.parameters[0]} of '{self._name}' cannot be put together from "
                f"{len(source.tensors)} tensors: {first_line(error)}",
                hint="Check that config.json and the weights belong together.",
            ) from error
        return found

    def _read(self, name: str) -> torch.Tensor:
        return read_tensor(self._tensors[name])

    def _check_shape(self, name: str, weight: torch.Tensor) -> None:
        planned = self.shape.get_parameter(name)
        if weight.shape != planned.shape or not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise ModelError(
                f"The weights of '{self._name}' have the wrong shape for {name}: "
                f"{list(weight.shape)} {kind} in the file, {list(planned.shape)} by config.json.",
                hint="Check that config.json and the weights belong together.",
            )


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """A tensor of a safetensors file, in memory of its own on the host."""
    return read_rows(tensor, 0, math.prod(tensor.shape[:-1])).reshape(tensor.shape)


def read_rows(tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Some rows of a tensor of a safetensors file, [rows, last size]; see `Rows`."""
    if tensor.dtype not in _DTYPES:
        raise ModelError(f"'{tensor.path}' holds a tensor of dtype {tensor.dtype}.")
    size = tensor.size // max(1, math.prod(tensor.shape[:-1]))
    # The header was read once: opening the file again for each tensor would parse it again.
    data = np.fromfile(
        tensor.path, dtype=np.uint8, count=(stop - start) * size, offset=tensor.start + start * size
    )
    return torch.from_numpy(data).view(_DTYPES[tensor.dtype]).reshape(stop - start, -1)


def rows_of(tensor: torch.Tensor) -> Rows:
    """Rows of a tensor in memory."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return lambda start, stop: flat[start:stop]


def difference(shape: Sequence[int], base: Rows, trained: Rows) -> torch.Tensor | None:
    """A weight minus another of the same shape, [p, q] or [E, p, q], a few rows at a time.

    Returns:
        float32 [E, p, q]; `None` where they are equal.
    """
    found = torch.empty(math.prod(shape[:-1]), shape[-1])
    count = max(1, _CHUNK_NUMBERS // shape[-1])
    moved = False
    for start in range(0, len(found), count):
        part = found[start : start + count]
        stop = start + len(part)
        torch.sub(base(start, stop).float(), trained(start, stop).float(), out=part)
        moved = moved or bool(part.any())
    return found.reshape(-1, *shape[-2:]) if moved else None


def _sources(
    shape: PreTrainedModel,
    tensors: Mapping[str, StoredTensor],
    current: Renamer,
    read: Callable[[str], torch.Tensor],
) -> list[_Source]:
    """File each tensor under the parameters that it belongs to, as transformers does."""
    from transformers.core_model_loading import dot_natural_key

    held = shape.state_dict()
    found: dict[str, _Source] = {}
    for name in sorted(tensors, key=dot_natural_key):
        target, conversion = current(name)
        if target not in held:
            continue
        if conversion is None:
            found.setdefault(
                target, _Source(parameters=(target,), tensors=[], converter=None)
            ).tensors.append(name)
            continue
        pattern, entry = conversion
        first = entry.target_patterns[0]
        targets = tuple(target.replace(first, other) for other in entry.target_patterns)
        source = found.setdefault(
            target, _Source(parameters=targets, tensors=[], converter=deepcopy(entry))
        )
        source.tensors.append(name)
        source.converter.add_tensor(target, name, pattern, partial(read, name))
    return [_with_tied(source, shape, found) for source in found.values()]


def _with_tied(source: _Source, shape: PreTrainedModel, found: Mapping[str, _Source]) -> _Source:
    """Count a tied weight for all its names that no tensor is filed under."""
    tied = tied_names(shape)
    others = {tied[name] for name in source.parameters if name in tied}
    others |= {name for name, first in tied.items() if first in source.parameters}
    more = tuple(sorted(name for name in others if name not in found))
    if source.converter is not None or not more:
        return source
    return _Source(parameters=source.parameters + more, tensors=source.tensors, converter=None)
