"""What a trained adapter becomes for serving: one plain LoRA adapter, or one merged model.

Inference engines take LoRA of one rank on linear layers and reject modules trained in full, DoRA
and biases. vLLM (`vllm/lora/peft_helper.py`) also ignores ranks and alphas by pattern and scales
all modules alike, so every module is written with one rank, padded with zeros, and a scale of 1.

To merge, no model is loaded: each file of the base is written again, unchanged tensors byte by
byte, changed ones a few rows at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from hlscore.errors import ModelError, UsageError
from hlscore.gradients.sketch import short_first
from hlscore.gradients.tails import chooses_full, full_spectrum, randomized_spectrum
from hlscore.inputs.hub import ADAPTER_PREFIX, read_json
from hlscore.inputs.tensor_files import DTYPES, INDEX_FILE, NewTensor, StoredTensor, write_tensors
from hlscore.inputs.trained import Adapter, LowRank, diverged
from hlscore.inputs.weights import tied_names

# Largest `--max-lora-rank` of vLLM, and the values that it takes.
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_PART_NUMBERS = 1 << 20
_FORMS = ("linear", "conv1d", "embedding")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
# Of the training's own files these replace those of the base: it may have added tokens.
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip

Writer = str | Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Served:
    """How one module is served."""

    module: str
    trained: str  # `full`, `lora` or `dora`
    trained_rank: int | None  # `None` for a module trained in full
    rank: int
    error: float  # `||U - U_r|| / ||U||`, U the update and r the rank that is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainAdapter:
    """A plain LoRA adapter: its files, one rank for all modules, and how each is served."""

    config: dict[str, object]
    tensors: dict[str, torch.Tensor]
    modules: tuple[Served, ...]
    rank: int


def plain_adapter(
    adapter: Adapter,
    *,
    max_rank: int,
    max_error: float | None,
    device: torch.device,
    advance: Callable[[int], None],
) -> PlainAdapter:
    """What was trained as LoRA of one rank, by truncated singular value decompositions.

    LoRA within the rank is kept as it is; only what was trained in full, DoRA and LoRA of a
    larger rank are decomposed.

    Args:
        max_error: Largest relative error of a module's update: the smallest rank within it is
            taken; `None` takes all of `max_rank`.
        advance: Called with 1 for each module.
    """
    items = []
    for name in adapter.parameters:
        copy, item = adapter.copies.get(name), adapter.items.get(name)
        if copy is not None and len(copy.shape) < 2:
            if not copy.read().float().equal(adapter.base.weight(name).float()):
                raise _inexpressible(adapter, f"{name} was trained, and LoRA holds no vectors")
        elif item is None or item.form not in _FORMS:
            what = f"{name.removesuffix('.weight')} is not a linear layer"
            raise _inexpressible(adapter, f"{what}, and engines load LoRA on linear layers only")
        else:
            items.append(item)
    items.sort(key=lambda item: item.module)
    factors: dict[str, LowRank] = {}
    served = []
    for item in items:
        lora, update, error = adapter.lora.get(item.parameter), adapter.update(item), 0.0
        parts = (update.left, update.right) if isinstance(update, LowRank) else (update,)
        if not all(part is None or bool(torch.isfinite(part).all()) for part in parts):
            raise diverged(adapter, item.parameter)
        if isinstance(update, LowRank) and update.rank > max_rank:
            update = update.dense()
        if isinstance(update, torch.Tensor):
            update, error = _truncated(update.to(device), max_rank, max_error)
        if update is not None:
            factors[item.module] = update
        served.append(
            Served(
                module=item.module,
                trained="full" if lora is None else lora.kind,
                trained_rank=None if lora is None else lora.rank,
                rank=0 if update is None else update.rank,
                error=error,
            )
        )
        advance(1)
    worst = max(served, key=lambda each: each.error, default=None)
    if worst is not None and max_error is not None and worst.error > max_error:
        number = sum(each.error > max_error for each in served)
        raise UsageError(
            f"Rank {max_rank} leaves an error of {worst.error:.1%} in {worst.module}, more than "
            f"--max-error {max_error} ({number} modules).",
            hint="Give a larger --max-rank, or write the whole model with `hlscore merge`.",
        )
    if not factors:
        raise UsageError(f"'{adapter.name}' changes no weight: there is nothing to serve.")
    rank = max(each.rank for each in factors.values())
    written = [item for item in items if item.module in factors]
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.name,
        "revision": adapter.config.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(item.form == "conv1d" for item in written),
        "target_modules": [item.module for item in written],
    }
    # Both matrices as PEFT names and lays them out; the update is subtracted, LoRA is added.
    tensors: dict[str, torch.Tensor] = {}
    for item in written:
        update = factors[item.module]
        left = torch.nn.functional.pad(-update.left[0], (0, rank - update.rank))
        right = torch.nn.functional.pad(update.right[0], (0, 0, 0, rank - update.rank))
        name, end = f"{ADAPTER_PREFIX}{item.module}.lora_", ".weight"
        if item.form == "embedding":  # [vocabulary, r] x [r, width]
            name, end, left, right = f"{name}embedding_", "", right.T, left.T
        elif item.storage == "in_out":
            left, right = right.T, left.T
        tensors[f"{name}A{end}"] = right.contiguous()
        tensors[f"{name}B{end}"] = left.contiguous()
    return PlainAdapter(config=config, tensors=tensors, modules=tuple(served), rank=rank)


def _inexpressible(adapter: Adapter, what: str) -> ModelError:
    return ModelError(
        f"'{adapter.name}' cannot become a plain LoRA adapter: {what}.",
        hint="Write the whole model with `hlscore merge`.",
    )


def _truncated(
    update: torch.Tensor, max_rank: int, max_error: float | None
) -> tuple[LowRank, float]:
    """Best approximation of a rank, and its relative error."""
    flip = update.shape[-2] > update.shape[-1]
    matrix = short_first(update)
    # In double precision, some columns at a time.
    count = max(1, _PART_NUMBERS // matrix.shape[-2])
    parts = torch.split(matrix, count, dim=-1)
    if chooses_full(matrix.shape[-2], max_rank, "auto"):
        gram = sum((part.double() @ part.double().mT for part in parts), torch.zeros(()))
        spectrum = full_spectrum(gram)
    else:
        spectrum = randomized_spectrum(matrix, max_rank, seed=0)
    total = float(spectrum.total.sum())
    heads = spectrum.energies[0].cumsum(-1)
    lost = (1 - heads / total).clamp(min=0).sqrt()
    rank = min(max_rank, matrix.shape[-2])
    if max_error is not None:
        within = (lost[:rank] <= max_error).nonzero()
        rank = int(within[0]) + 1 if len(within) else rank
    basis = spectrum.basis[..., :rank].double()
    right = torch.empty(1, rank, matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    for to, part in zip(torch.split(right, count, dim=-1), parts, strict=True):
        to.copy_(basis.mT @ part.double())
    # Both factors alike in size: engines hold them in 16 bits.
    root = spectrum.energies[:, :rank].clamp(min=1e-300).sqrt().sqrt()
    left, right = (basis * root.unsqueeze(-2)).float(), (right / root.unsqueeze(-1)).float()
    factors = LowRank(right.mT, left.mT) if flip else LowRank(left, right)
    # The last energies are rounding of the total where nothing is lost.
    error = 0.0 if rank == matrix.shape[-2] else float(lost[rank - 1])
    return LowRank(factors.left.cpu(), factors.right.cpu()), error


def merge_writers(adapter: Adapter, advance: Callable[[int], None]) -> dict[str, Writer]:
    """Texts and writers of the files of the merged model, by name.

    Sums are formed in float32 and rounded once to the dtype of the base. Where one of two tied
    weights was trained, both are written, and the configuration says that they are not tied.

    Args:
        advance: Called with 1 for each changed tensor that is written.
    """
    base, changed = adapter.base, adapter.parameters
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
                if not bool(torch.isfinite(part).all()):
                    raise diverged(adapter, name)
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
        config = read_json(base.directory / "config.json")
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
        writers["config.json"] = _json_text(config)
    return writers


def _json_text(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
