"""A LoRA adapter of PEFT, read from its two files without PEFT.

Read are LoRA, rsLoRA and DoRA on linear layers, `Conv1D`, embeddings and single parameters
(routers, fused experts), with ranks and alphas by pattern, and the modules that were trained in
full beside them (`modules_to_save`). What changes the base, or is not the same for every token,
is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hlscore.errors import ModelError, first_line
from hlscore.inputs.modules import find_modules
from hlscore.inputs.stored_weights import (
    Rows,
    StoredWeights,
    difference,
    read_rows,
    read_tensor,
)
from hlscore.inputs.tensor_files import StoredTensor, file_tensors
from hlscore.records import Candidate
from hlscore.settings import CandidateSettings

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_WRAPPED = ".base_layer"
_SHOWN = 3
_BLOCK_NUMBERS = 1 << 20
# What FSDP and torch.compile leave in names that were saved without unwrapping.
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod)\.")
# Options that make an adapter more than a product of two matrices added to a weight.
_REFUSED = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "mica": "MiCA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens",
    "lora_bias": "LoRA with a bias of its own",
}
# Initialisations that take a part out of the base weights, which the adapter then holds.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(
    r"(?P<module>.+)\.(?:(?P<matrix>lora_[AB])(?:\.default)?\.weight"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update as a product of two factors.

    Attributes:
        left: float32 [E, p, r].
        right: float32 [E, r, q]; `left @ right` is the update in the layout of the weight.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return self.left.shape[-1]

    def dense(self) -> torch.Tensor:
        """The product, float32 [E, p, q]."""
        return self.left @ self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Tensors of the LoRA on one weight."""

    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None
    embedding: bool
    scale: float


class Adapter:
    """A PEFT adapter beside its base model."""

    def __init__(self, name: str, folder: Path, base: StoredWeights) -> None:
        self.name, self.folder, self._base = name, folder, base
        self.config = _config(folder / CONFIG_FILE, name)
        # Of every weight of the base, candidate or not, its layout.
        self._layouts = {
            item.parameter: item for item in find_modules(base.shape, CandidateSettings())
        }
        self._lora: dict[str, _Parts] = {}
        self.copies: dict[str, StoredTensor] = {}
        self._file(_weights(folder, name))
        self.notes = self._notes()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Weights with LoRA on them."""
        return tuple(self._lora)

    def check(self, modules: Sequence[Candidate]) -> None:
        """Every name was found in the base when the adapter was opened; see `Trained`."""
        del modules

    def layout(self, parameter: str) -> Candidate:
        """What is known of a weight of the base that is trained."""
        return self._layouts[parameter]

    def update(self, item: Candidate, base: Rows | None = None) -> torch.Tensor | LowRank | None:
        """How far a weight has moved; see `Trained`. Without `base` its rows are read as needed."""
        name = item.parameter
        rows = base or self._base.rows(name)
        shape = self._base.shape.get_parameter(name).shape
        if name in self.copies:
            return difference(shape, rows, partial(read_rows, self.copies[name]))
        parts = self._lora.get(name)
        if parts is None:
            return None
        if parts.magnitude is None:
            product = self._factors(item, parts)
            return product if bool(product.left.any()) and bool(product.right.any()) else None
        merged = self.merged(item, rows)
        found = torch.empty(math.prod(shape[:-1]), shape[-1])
        start, moved = 0, False
        for part in merged:
            stop = start + len(part)
            torch.sub(rows(start, stop).float(), part, out=found[start:stop])
            moved = moved or bool(found[start:stop].any())
            start = stop
        return found.reshape(-1, *shape[-2:]) if moved else None

    def merged(self, item: Candidate, base: Rows | None = None) -> Iterator[torch.Tensor]:
        """The weight with its LoRA, a few rows at a time, float32 [rows, last size]."""
        parts = self._lora[item.parameter]
        product, rows = self._factors(item, parts), base or self._base.rows(item.parameter)
        count = max(1, _BLOCK_NUMBERS // product.right.shape[-1])

        def sums(place: int) -> Iterator[torch.Tensor]:
            start = place * product.left.shape[-2]
            for left in torch.split(product.left[place], count):
                stop = start + len(left)
                yield rows(start, stop).float() - left @ product.right[place]
                start = stop

        for place in range(len(product.left)):
            if parts.magnitude is None:
                yield from sums(place)
                continue
            # DoRA: each row of the sum, in the layout [out, in], is scaled to a length of its own.
            length = read_tensor(parts.magnitude).float().flatten()
            if item.storage == "in_out":
                scale = (
                    length
                    / torch.stack([part.square().sum(0) for part in sums(place)]).sum(0).sqrt()
                )
                yield from (part * scale for part in sums(place))
                continue
            for part, wanted in zip(sums(place), torch.split(length, count), strict=True):
                found = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
                yield part * (wanted[:, None] / found)

    def copied(self, parameter: str) -> torch.Tensor:
        """A weight that was trained in full, as the adapter stores it."""
        return read_tensor(self.copies[parameter])

    def low_rank(self, item: Candidate) -> LowRank | None:
        """The factors of a LoRA; `None` for DoRA and for a weight trained in full."""
        parts = self._lora.get(item.parameter)
        if parts is None or parts.magnitude is not None or item.parameter in self.copies:
            return None
        return self._factors(item, parts)

    def kind_of(self, item: Candidate) -> str:
        """How a weight was trained: `full`, `lora` or `dora`."""
        parts = self._lora.get(item.parameter)
        if parts is None or item.parameter in self.copies:
            return "full"
        return "lora" if parts.magnitude is None else "dora"

    def rank_of(self, item: Candidate) -> int | None:
        """Rank of the LoRA on a weight; see `Trained`."""
        parts = self._lora.get(item.parameter)
        return None if parts is None else parts.a.shape[0] // item.matrices

    def rounding(self, item: Candidate) -> float:
        """The update is stored, not its sum with the base; see `Trained`."""
        del item
        return 0.0

    def _factors(self, item: Candidate, parts: _Parts) -> LowRank:
        """Both factors in the layout of the weight, with scale and sign in the left one."""
        a, b = read_tensor(parts.a).float(), read_tensor(parts.b).float()
        if parts.embedding:  # rows of the table are its outputs
            return LowRank((-parts.scale * a.T)[None], b.T.contiguous()[None])
        a = a.reshape(item.matrices, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, item.matrices).permute(2, 0, 1)
        if item.storage == "in_out":
            return LowRank(-parts.scale * a.mT, b.mT.contiguous())
        return LowRank(-parts.scale * b, a)

    def _file(self, tensors: Mapping[str, StoredTensor]) -> None:
        """File every tensor under the weight that it belongs to."""
        found: dict[str, dict[str, StoredTensor]] = {}
        lost: list[str] = []
        for key, tensor in sorted(tensors.items()):
            name = _WRAPPERS.sub("", key).removeprefix(_PREFIX)
            part = _PART.fullmatch(name)
            if part is not None:
                kind = part["matrix"] or part["embedding"] or part["magnitude"]
                parameter = self._target(part["module"])
                if parameter is None:
                    lost.append(part["module"].replace(_WRAPPED, ""))
                    continue
                found.setdefault(parameter, {})[kind] = tensor
                continue
            if "lora_" in name or "token_adapter" in name:
                raise self._unknown(f"it holds a tensor {key}")
            if f"{_WRAPPED}." in name and not name.endswith(".bias"):
                continue  # the untrained weight under a LoRA, saved beside it
            name = name.replace(_WRAPPED, "").replace(".modules_to_save.default", "")
            current = self._base.current_name(name)
            if current is None:
                lost.append(name)
            else:
                self.copies[current] = tensor
        if lost:
            raise self._of_another_model(lost)
        for parameter, parts in found.items():
            self._lora[parameter] = self._parts(parameter, parts)
        for parameter, tensor in self.copies.items():
            planned = tuple(self._base.shape.state_dict()[parameter].shape)
            if tensor.shape != planned:
                raise self._misfit(parameter, tensor.shape, planned)

    def _target(self, module: str) -> str | None:
        """Name of the weight that a LoRA belongs to; `None` where the base has no such module."""
        depth = module.count(_WRAPPED)
        plain = module.replace(_WRAPPED, "")
        current = self._base.current_name(f"{plain}.weight")
        if current is not None:
            return current
        try:
            holder = self._base.shape.get_submodule(plain)
        except AttributeError:
            return None
        # PEFT wraps the parameters of one module in turn: the first declared lies innermost.
        targets: list[str] = self.config.get("target_parameters") or []
        names = [f"{plain}.{leaf}" for leaf, _ in holder.named_parameters(recurse=False)]
        wrapped = [
            name
            for name in names
            if any(name == target or name.endswith(f".{target}") for target in targets)
        ]
        place = len(wrapped) - 1 - depth
        return wrapped[place] if 0 <= place < len(wrapped) else None

    def _parts(self, parameter: str, parts: Mapping[str, StoredTensor]) -> _Parts:
        embedding = "lora_embedding_A" in parts
        prefix = "lora_embedding_" if embedding else "lora_"
        if not {f"{prefix}A", f"{prefix}B"} <= parts.keys():
            raise self._unknown(f"{parameter} lacks one of its LoRA matrices")
        a, b, item = parts[f"{prefix}A"], parts[f"{prefix}B"], self._layouts.get(parameter)
        magnitude = parts.get("lora_magnitude_vector")
        if item is None or (embedding and magnitude is not None):
            raise self._unknown(f"the LoRA on {parameter} is of an unknown kind")
        rows, columns = (
            (item.out_features, item.in_features)
            if not embedding
            else (item.in_features, item.out_features)
        )
        rank = a.shape[0] // item.matrices
        wanted = (rank * item.matrices, columns), (rows, rank * item.matrices)
        if (a.shape, b.shape) != wanted or rank < 1:
            held = [*a.shape[1:], b.shape[0]]
            raise self._misfit(parameter, tuple(held), (columns, rows))
        return _Parts(
            a=a, b=b, magnitude=magnitude, embedding=embedding, scale=self._scale(parameter, rank)
        )

    def _scale(self, parameter: str, rank: int) -> float:
        """Alpha over the rank, or over its root; patterns are matched as PEFT matches them."""
        named = [parameter.removesuffix(".weight"), parameter]
        patterns: dict[str, float] = self.config.get("alpha_pattern") or {}
        alpha = self.config.get("lora_alpha", 8)
        for key, value in patterns.items():
            if any(re.match(rf"(.*\.)?({key})$", name) for name in named):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _notes(self) -> tuple[str, ...]:
        named = self.config.get("base_model_name_or_path")
        if not named or Path(str(named)).name == self._base.directory.name:
            return ()
        own = self._base.identity().model
        if Path(str(named)).name == Path(own).name:
            return ()
        return (f"'{self.name}' names {named} as its base model; it is read beside {own}.",)

    def _of_another_model(self, lost: Sequence[str]) -> ModelError:
        names = sorted(set(lost))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        named = self.config.get("base_model_name_or_path")
        return ModelError(
            f"'{self.name}' is an adapter for other modules: the base model has no "
            f"{', '.join(names[:_SHOWN])}{more}.",
            hint=f"Its {CONFIG_FILE} names {named} as the base model." if named else "",
        )

    def _misfit(
        self, parameter: str, found: tuple[int, ...], planned: tuple[int, ...]
    ) -> ModelError:
        return ModelError(
            f"'{self.name}' is not for this base model: it has sizes {list(found)} for "
            f"{parameter}, and the model {list(planned)}.",
            hint="Name the model that the adapter was trained on.",
        )

    def _unknown(self, what: str) -> ModelError:
        return ModelError(
            f"The adapter '{self.name}' cannot be read: {what}.",
            hint="Merge it with PEFT (merge_and_unload), and name the merged model instead.",
        )


def _config(path: Path, name: str) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"'{path}' cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' is not an adapter configuration.")
    refused = str(config.get("peft_type"))
    what = f"it is of type {refused}" if refused != "LORA" else ""
    for option, kind in _REFUSED.items():
        if not what and config.get(option):
            what = f"it uses {kind} ({option})"
    init = str(config.get("init_lora_weights")).lower()
    if not what and init.startswith(_CHANGES_BASE):
        what = f"init_lora_weights is {config['init_lora_weights']}, which changes the base weights"
    if what:
        raise ModelError(
            f"The adapter '{name}' cannot be read: {what}.",
            hint="Merge it with PEFT (merge_and_unload), and name the merged model instead.",
        )
    _check_patterns(config, path)
    return config


def _check_patterns(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what an untrusted file can hold instead of names and numbers."""
    checks: dict[str, Callable[[Any], bool]] = {
        "lora_alpha": lambda value: isinstance(value, int | float) and math.isfinite(value),
        "alpha_pattern": lambda value: (
            isinstance(value, dict)
            and all(isinstance(alpha, int | float) for alpha in value.values())
        ),
        "target_parameters": lambda value: (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ),
    }
    for field, good in checks.items():
        value = config.get(field)
        if value is not None and not good(value):
            raise ModelError(f"'{path}' is damaged at {field}.")
    for key in config.get("alpha_pattern") or {}:
        try:
            re.compile(key)
        except re.error as error:
            raise ModelError(f"'{path}' is damaged at alpha_pattern '{key}': {error}.") from error


def _weights(folder: Path, name: str) -> dict[str, StoredTensor]:
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return file_tensors(path)
    pickled = (folder / "adapter_model.bin").is_file()
    raise ModelError(
        f"The adapter '{name}' has no {WEIGHTS_FILE}"
        + (": pickle weights (adapter_model.bin) can run code when opened." if pickled else "."),
        hint="Load it with PEFT and save_pretrained(DIRECTORY).",
    )
