"""Tensors of safetensors files: listed, read in part or whole, sampled, copied and written.

Numpy has no bfloat16, so the libraries' own numpy interface cannot carry most checkpoints: bytes
are read here, and torch is imported only where a tensor is asked for. The header of every file is
checked by the safetensors library first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import ModelError, first_line
from hlscore.inputs.hub import SAVE_AGAIN, read_json

if TYPE_CHECKING:
    import torch

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Names in torch of the dtypes that can be read."""
INDEX_FILE = "model.safetensors.index.json"
SAMPLES_PER_WEIGHT = 16
"""Numbers of each weight that count in the fingerprint of a model."""
_WHOLE_FILE = "model.safetensors"
# Little-endian on disk, whatever the machine.
_SAMPLED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CHUNK = 1 << 24
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    dtype: str  # name of the dtype in the format, such as `BF16`
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the file
    size: int  # number of bytes

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a part at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left > 0:
                part = file.read(min(left, _CHUNK))
                if not part:
                    raise ModelError(f"'{self.path}' is cut short.", hint=SAVE_AGAIN)
                left -= len(part)
                yield part

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some of its rows, its leading sizes joined: [stop - start, last size]."""
        import torch

        if self.dtype not in DTYPES:
            raise ModelError(f"'{self.path}' holds a tensor of dtype {self.dtype}.")
        size = self.size // max(1, math.prod(self.shape[:-1]))
        data = np.fromfile(
            self.path, dtype=np.uint8, count=(stop - start) * size, offset=self.start + start * size
        )
        dtype: torch.dtype = getattr(torch, DTYPES[self.dtype])
        return torch.from_numpy(data).view(dtype).reshape(stop - start, -1)

    def read(self) -> torch.Tensor:
        """The whole tensor, in memory of its own on the host."""
        return self.rows(0, math.prod(self.shape[:-1])).reshape(self.shape)

    def equals(self, other: StoredTensor) -> bool:
        """Whether another tensor has the same shape and numbers, in whatever dtype."""
        if self.shape != other.shape:
            return False
        if self.dtype == other.dtype:
            return all(a == b for a, b in zip(self.chunks(), other.chunks(), strict=True))
        return self.read().float().equal(other.read().float())

    def sample(self) -> NDArray[np.int16]:
        """Up to 16 evenly spaced numbers as bits of bfloat16; none of a tensor of integers."""
        if self.dtype not in _SAMPLED or self.size == 0:
            return np.empty(0, dtype=np.int16)
        kind = np.dtype(_SAMPLED[self.dtype])
        numbers = self.size // kind.itemsize
        kept = min(SAMPLES_PER_WEIGHT, numbers)
        whole = np.memmap(self.path, dtype=kind, mode="r", offset=self.start, shape=(numbers,))
        found = whole[np.arange(kept) * numbers // kept]
        if self.dtype == "BF16":
            return found.astype(np.uint16).view(np.int16)
        single = found.astype(np.float32)
        bits = single.view(np.uint32)
        # To the nearest, ties to even, as torch rounds.
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        rounded = np.where(np.isnan(single), np.uint32(0x7FC0), rounded)
        return rounded.astype(np.uint16).view(np.int16)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor to write."""

    dtype: str  # name of the dtype in the format
    shape: tuple[int, ...]
    size: int  # number of bytes
    # Gives its bytes, a part at a time; called once for each file that is written.
    chunks: Callable[[], Iterator[bytes]]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder by name; reads only the headers of its files.

    Files count as transformers counts them: `model.safetensors`, or else the files that
    `model.safetensors.index.json` names. Where there is neither, all safetensors files count.
    """
    index, found = folder / INDEX_FILE, dict[str, StoredTensor]()
    if (folder / _WHOLE_FILE).is_file():
        return file_tensors(folder / _WHOLE_FILE)
    if not index.is_file():
        for path in sorted(folder.glob("*.safetensors")):
            for name, tensor in file_tensors(path).items():
                if name in found:
                    raise ModelError(
                        f"'{folder}' has the tensor '{name}' twice, in {found[name].path.name} "
                        f"and {path.name}, and no {INDEX_FILE} that says which one counts.",
                        hint="Remove the file that does not belong to the model.",
                    )
                found[name] = tensor
        return found
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"'{index}' has no weight_map.", hint=SAVE_AGAIN)
    files: dict[str, dict[str, StoredTensor]] = {}
    for name, file in places.items():
        plain = isinstance(file, str) and file.isprintable() and file != ".."
        if not plain or PureWindowsPath(file).name != file:
            raise ModelError(f"'{index}' names {file!r}, which is not a file of its folder.")
        if not (folder / file).is_file():
            raise ModelError(f"'{folder}' lacks {file}, which {index.name} names.", hint=SAVE_AGAIN)
        if file not in files:
            files[file] = file_tensors(folder / file)
        if name not in files[file]:
            raise ModelError(
                f"{file} has no tensor '{name}', which {index.name} says is there.", hint=SAVE_AGAIN
            )
        found[name] = files[file][name]
    return found


def sample_hash(samples: Mapping[str, bytes]) -> str:
    """Hash over samples of weights by name, as the fingerprint of a model has it."""
    found = hashlib.sha256()
    for _, sample in sorted(samples.items()):
        found.update(sample)
    return f"sha256:{found.hexdigest()}"


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name; reads only its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header and all offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"'{path}' is corrupt or cut short: {first_line(error)}", hint=SAVE_AGAIN
        ) from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=8 + length + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def write_tensors(
    path: Path, tensors: Mapping[str, NewTensor | StoredTensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, its tensors in the order of their names."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in sorted(tensors.items()):
            written = sum(file.write(part) for part in tensor.chunks())
            if written != tensor.size:
                raise ModelError(f"'{name}' has {written} bytes, not {tensor.size}.")
