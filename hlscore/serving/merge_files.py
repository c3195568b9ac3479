"""A trained adapter merged into the files of its base, tensor by tensor.

No model is loaded: each file of the base is written again, unchanged tensors byte by byte,
changed ones a few rows at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hlscore.errors import ModelError
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.inputs.tensor_files import DTYPES, INDEX_FILE, NewTensor, StoredTensor, write_tensors
from hlscore.inputs.trained import Adapter
from hlscore.inputs.weights import tied_names

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
# Of the training's own files these replace those of the base: it may have added tokens.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip

Writer = str | Callable[[Path], object]


def merge_writers(
    adapter: Adapter, base: StoredWeights, advance: Callable[[int], None]
) -> dict[str, Writer]:
    """Texts and writers of the files of the merged model, by name.

    Sums are formed in float32 and rounded once to the dtype of the base. Where one of two tied
    weights was trained, both are written, and the configuration says that they are not tied.

    Args:
        advance: Called with 1 for each changed tensor that is written.
    """
    changed = adapter.parameters
    for name in sorted(changed):
        if name not in base.sources or base.sources[name].converter is not None:
            raise ModelError(
                f"{name} is stored in pieces by the base model, and cannot be merged in place.",
                hint="Merge in memory: hlscore.merge(PeftModel.from_pretrained(model, RUN)).",
            )

    def merged(name: str, stored: StoredTensor) -> NewTensor:
        dtype: torch.dtype = getattr(torch, DTYPES[stored.dtype])

        def chunks() -> Iterator[bytes]:
            for part in adapter.trained(name):
                rounded = part.to(dtype).contiguous()
                yield rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
            advance(1)

        return NewTensor(dtype=stored.dtype, shape=stored.shape, size=stored.size, chunks=chunks)

    def trained_as_one(names: set[str]) -> bool:
        """Whether tied weights were trained in full, to one and the same."""
        if not names <= adapter.copies.keys():
            return False
        first, *others = (adapter.copies[name] for name in sorted(names))
        return all(other.dtype == first.dtype and other.equals(first) for other in others)

    files: dict[Path, dict[str, NewTensor | StoredTensor]] = {}
    for name, tensor in base.tensors.items():
        files.setdefault(tensor.path, {})[name] = tensor
    for stored, names in {
        base.sources[name].tensors[0]: set(base.sources[name].parameters)
        for name in sorted(changed)
    }.items():
        tensor = base.tensors[stored]
        held = files[tensor.path]
        made = {name: merged(name, tensor) for name in names & changed}
        if len(names) == 1 or trained_as_one(names):
            held[stored] = next(iter(made.values()))
            continue
        del held[stored]
        held |= {name: made.get(name, tensor) for name in names}
    writers: dict[str, Writer] = {
        path.name: partial(write_tensors, tensors=tensors, metadata={"format": "pt"})
        for path, tensors in files.items()
    }
    if len(files) > 1:
        places = {name: path.name for path, tensors in files.items() for name in tensors}
        total = sum(tensor.size for tensors in files.values() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        writers[INDEX_FILE] = _json_text(index)

    # Configuration and tokenizer: those of the base, with the training's tokenizer if any.
    for path in sorted(base.directory.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS and path.name != INDEX_FILE:
            writers[path.name] = partial(shutil.copyfile, path)
    for name in _TOKENIZER:
        if (adapter.folder / name).is_file():
            writers[name] = partial(shutil.copyfile, adapter.folder / name)
    untied = any(
        {name, first} & changed and not trained_as_one({name, first})
        for name, first in tied_names(base.shape).items()
        if name != first
    )
    if untied:
        config: dict[str, Any] = json.loads((base.directory / "config.json").read_bytes())
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        writers["config.json"] = _json_text(config)
    return writers


def _json_text(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
