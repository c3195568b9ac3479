"""Tensors of safetensors files as raw bytes: read, sampled, copied and written without torch.

Numpy has no bfloat16, so the libraries' own numpy interface cannot carry most checkpoints. The
header of every file is checked by the safetensors library before it is used here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlscore.errors import ArtifactError, first_line

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CHUNK = 1 << 24
_ALIGNMENT = 8
_WHOLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


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
        chunks: Gives its bytes, a part at a time; called once for each file that is written.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[bytes]]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a model folder; reads only the headers of their files.

    Files count as transformers counts them: `model.safetensors`, or else the files that
    `model.safetensors.index.json` names. Where there is neither, all safetensors files count.
    """
    if (folder / _WHOLE_FILE).is_file():
        return file_tensors(folder / _WHOLE_FILE)
    if (folder / _INDEX_FILE).is_file():
        return _indexed_tensors(folder / _INDEX_FILE)
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in file_tensors(path).items():
            if name in found:
                raise ArtifactError(
                    f"'{folder}' has the tensor '{name}' twice, in {found[name].path.name} and "
                    f"{path.name}, and no {_INDEX_FILE} that says which one counts.",
                    hint="Remove the file that does not belong to the model.",
                )
            found[name] = tensor
    return found


def write_tensors(
    path: Path, tensors: Mapping[str, NewTensor | StoredTensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Args:
        tensors: Tensors by name; written in the order of their names.
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
        for name, tensor in sorted(tensors.items()):
            written = sum(file.write(part) for part in tensor.chunks())
            if written != tensor.size:
                raise ArtifactError(f"'{name}' has {written} bytes, not {tensor.size}.")


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file; reads only its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header and all offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
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


def _indexed_tensors(index: Path) -> dict[str, StoredTensor]:
    """Take each tensor from the file that the index names for it."""
    places = _weight_map(index)
    absent = sorted(name for name in set(places.values()) if not (index.parent / name).is_file())
    if absent:
        raise ArtifactError(
            f"'{index.parent}' lacks {absent[0]}, which {index.name} names.",
            hint="Download or save the model again.",
        )
    files = {name: file_tensors(index.parent / name) for name in sorted(set(places.values()))}
    missing = next((name for name, file in places.items() if name not in files[file]), None)
    if missing is not None:
        raise ArtifactError(
            f"{places[missing]} has no tensor '{missing}', which {index.name} says is there.",
            hint="Download or save the model again.",
        )
    return {name: files[file][name] for name, file in places.items()}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        document: Any = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"'{index}' cannot be read: {first_line(error)}") from error
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict):
        raise ArtifactError(f"'{index}' has no weight_map.")
    for file in places.values():
        if not (isinstance(file, str) and file.isprintable() and _is_plain_name(file)):
            raise ArtifactError(f"'{index}' names {file!r}, which is not a file of its folder.")
    return places


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\\"}


def _bfloat16_bits(numbers: NDArray[np.generic], dtype: str) -> NDArray[np.int16]:
    if dtype == "BF16":
        return numbers.astype(np.uint16).view(np.int16)
    single = numbers.astype(np.float32)
    bits = single.view(np.uint32)
    # To the nearest, ties to even, as torch rounds.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded = np.where(np.isnan(single), np.uint32(0x7FC0), rounded)
    return rounded.astype(np.uint16).view(np.int16)
