"""Tensors of safetensors files as raw bytes: read, sampled, copied and written without torch.

Numpy has no bfloat16, so the libraries' own numpy interface cannot carry most checkpoints. The
header of every file is checked by the safetensors library before it is used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import ArtifactError, first_line

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CHUNK = 1 << 24
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: The file.
        dtype: Name of the dtype in the format, such as `BF16`.
        shape: Sizes.
        start: Offset of its first byte in the file.
        size: Number of bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the tensor, a part at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left > 0:
                part = file.read(min(left, _CHUNK))
                if not part:
                    raise ArtifactError(f"'{self.path}' is cut short.")
                left -= len(part)
                yield part

    def sample(self, count: int) -> NDArray[np.int16]:
        """Evenly spaced numbers, rounded to bfloat16.

        Args:
            count: How many at most.

        Returns:
            Their bits, int16 [count or fewer]; empty where the dtype is no floating-point one.
        """
        width = _ITEM_BYTES.get(self.dtype)
        if width is None or self.size == 0:
            return np.empty(0, dtype=np.int16)
        numbers = self.size // width
        kept = min(count, numbers)
        # Little-endian on disk, whatever the machine.
        kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        whole = np.memmap(
            self.path, dtype=kinds[self.dtype], mode="r", offset=self.start, shape=(numbers,)
        )
        return _bfloat16_bits(whole[np.arange(kept) * numbers // kept], self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor to write.

    Attributes:
        dtype: Name of the dtype in the format.
        shape: Sizes.
        size: Number of bytes.
        chunks: Its bytes, a part at a time.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Iterator[bytes]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of all safetensors files of a model folder; reads only their headers.

    Args:
        folder: Folder of a checkpoint.

    Returns:
        The tensors by name.

    Raises:
        ArtifactError: A file cannot be read.
    """
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= _tensors_of(path)
    return found


def write_tensors(
    path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Args:
        path: The file.
        tensors: Tensors by name; written in the order of their names.
        metadata: Texts for the header.
    """
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
        for _, tensor in sorted(tensors.items()):
            for part in tensor.chunks:
                file.write(part)


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header and all offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"'{path}' is corrupt or cut short: {first_line(error)}",
            hint="Download or save the model again.",
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


def _bfloat16_bits(numbers: NDArray[np.generic], dtype: str) -> NDArray[np.int16]:
    if dtype == "BF16":
        return numbers.astype(np.uint16).view(np.int16)
    single = numbers.astype(np.float32)
    bits = single.view(np.uint32)
    # To the nearest, ties to even, as torch rounds.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded = np.where(np.isnan(single), np.uint32(0x7FC0), rounded)
    return rounded.astype(np.uint16).view(np.int16)
