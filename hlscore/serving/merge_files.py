"""A trained adapter merged into the files of its base, tensor by tensor.

No model is loaded: each file of the base is written again, unchanged tensors byte by byte,
changed ones a few rows at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hlscore.errors import ModelError
from hlscore.inputs.adapter import Adapter
from hlscore.inputs.stored_weights import StoredWeights, read_rows
from hlscore.inputs.tensor_files import NewTensor, StoredTensor, write_tensors
from hlscore.inputs.weights import tied_names

INDEX_FILE = "model.safetensors.index.json"
_PART_NUMBERS = 1 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
# Of the training's own files these replace those of the base: it may have added tokens.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge_writers(
    adapter: Adapter, base: StoredWeights, advance: Callable[[int], None]
) -> dict[str, Callable[[Path], None]]:
    """Writers of the files of the merged model, by name; `advance` hears of each changed tensor.

    Sums are formed in float32 and rounded once to the dtype of the base. Where one of two tied
    weights was trained, both are written, and the configuration says that they are not tied.
    """
    changed = {*adapter.parameters, *adapter.copies}
    for name in sorted(changed):
        if not base.is_copy(name):
            raise ModelError(
                f"{name} is stored in pieces by the base model, and cannot be merged in place.",
                hint="Merge in memory: hlscore.merge(PeftModel.from_pretrained(model, RUN)).",
            )
    files: dict[Path, dict[str, NewTensor | StoredTensor]] = {}
    for name, tensor in base.tensors.items():
        files.setdefault(tensor.path, {})[name] = tensor
    for stored in {base.stored_as(name)[0] for name in sorted(changed)}:
        tensor = base.tensors[stored]
        held, current = files[tensor.path], base.current_name(stored)
        shared = base.shares(current or stored)
        made = {name: _merged(adapter, name, tensor, advance) for name in shared & changed}
        if len(shared) == 1 or _trained_as_one(adapter, shared):
            held[stored] = next(iter(made.values()))
            continue
        del held[stored]
        held |= {name: made.get(name, tensor) for name in shared}
    places = {name: path.name for path, tensors in files.items() for name in tensors}
    untied = any(
        {name, first} & changed and not _trained_as_one(adapter, {name, first})
        for name, first in tied_names(base.shape).items()
        if name != first
    )
    writers: dict[str, Callable[[Path], None]] = {
        path.name: partial(write_tensors, tensors=tensors, metadata={"format": "pt"})
        for path, tensors in files.items()
    }
    if len(files) > 1:
        total = sum(tensor.size for tensors in files.values() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        writers[INDEX_FILE] = partial(_write_json, content=index)
    return writers | _other_files(adapter, base, untied=untied)


def _trained_as_one(adapter: Adapter, names: set[str]) -> bool:
    """Whether tied weights were trained in full, to one and the same."""
    if any(name not in adapter.copies for name in names):
        return False
    first, *others = (adapter.copies[name] for name in sorted(names))
    return all(
        other.dtype == first.dtype
        and all(a == b for a, b in zip(first.chunks(), other.chunks(), strict=True))
        for other in others
    )


def _merged(
    adapter: Adapter, name: str, stored: StoredTensor, advance: Callable[[int], None]
) -> NewTensor:
    def parts() -> Iterator[torch.Tensor]:
        if name not in adapter.copies:
            yield from adapter.merged(adapter.layout(name))
            return
        *leading, width = adapter.copies[name].shape
        rows, count = math.prod(leading), max(1, _PART_NUMBERS // width)
        for start in range(0, rows, count):
            yield read_rows(adapter.copies[name], start, min(rows, start + count))

    def chunks() -> Iterator[bytes]:
        for part in parts():
            rounded = part.to(_DTYPES[stored.dtype]).contiguous()
            yield rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
        advance(1)

    return NewTensor(dtype=stored.dtype, shape=stored.shape, size=stored.size, chunks=chunks)


def _other_files(
    adapter: Adapter, base: StoredWeights, *, untied: bool
) -> dict[str, Callable[[Path], None]]:
    """Configuration and tokenizer: those of the base, with the training's tokenizer if any."""
    found: dict[str, Callable[[Path], None]] = {}
    for path in sorted(base.directory.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS and path.name != INDEX_FILE:
            found[path.name] = partial(_copy, path)
    for name in _TOKENIZER:
        if (adapter.folder / name).is_file():
            found[name] = partial(_copy, adapter.folder / name)
    if untied:
        config: dict[str, Any] = json.loads((base.directory / "config.json").read_bytes())
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"]["tie_word_embeddings"] = False
        found["config.json"] = partial(_write_json, content=config)
    return found


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
