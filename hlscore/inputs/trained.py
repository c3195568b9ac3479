"""What a training has changed: a fine-tuned checkpoint or a PEFT adapter, read beside its base.

Updates are `U = W_base - W_trained`, as trials have them, so that a step down the gradient has
the gradient's sign. Nothing is loaded: one tensor of the base is held at a time, and with it
that of the checkpoint, or the factors of the adapter.

Of PEFT's adapters LoRA, rsLoRA and DoRA are read without PEFT: on linear layers, `Conv1D`,
embeddings and single parameters (routers, fused experts), with ranks and alphas by pattern, and
the modules that were trained in full beside them (`modules_to_save`). What changes the base, or
is not the same for every token, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch
from pydantic import BaseModel, FiniteFloat, ValidationError

from hlscore.errors import ModelError
from hlscore.inputs.hub import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    find_adapter,
    read_json,
)
from hlscore.inputs.modules import find_modules
from hlscore.inputs.stored_weights import Rows, StoredWeights, difference, in_parts
from hlscore.inputs.tensor_files import StoredTensor, file_tensors
from hlscore.paths import existing_path
from hlscore.records import Candidate
from hlscore.settings import ModelSettings
from hlscore.wording import first_of

_WRAPPED = ".base_layer"
_BLOCK_NUMBERS = 1 << 20
# What FSDP and torch.compile leave in names that were saved without unwrapping.
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod)\.")
# Options that make an adapter more than a product of two matrices added to a weight.
_REFUSED = {
    "use_qalora": "QALoRA", "alora_invocation_tokens": "activated LoRA", "arrow_config": "Arrow",
    "use_bdlora": "block-diagonal LoRA", "monteclora_config": "MonteCLoRA", "kasa_config": "KaSA",
    "velora_config": "VeLoRA", "mica": "MiCA", "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens", "lora_bias": "LoRA with a bias of its own",
}  # fmt: skip
# Initialisations that take a part out of the base weights, which the adapter then holds.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(
    r"(?P<module>.+)\.(?:(?P<matrix>lora_(?:embedding_)?[AB])(?:\.default)?(?:\.weight)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
# Root mean square of the rounding of a number to 16 bits, relative to the number: a spacing of
# 2^-7 (2^-10) within each power of two, `sqrt(spacing^2 / 24)` where mantissas are uniform.
_ROUNDING = {"bfloat16": 2.0**-7 / 24**0.5, "float16": 2.0**-10 / 24**0.5}


class _Scales(BaseModel):
    """Settings that say how LoRA is scaled and what it lies on."""

    lora_alpha: FiniteFloat = 8
    alpha_pattern: dict[re.Pattern[str], FiniteFloat] | None = None
    target_parameters: list[str] | None = None
    use_rslora: bool = False

    def scale(self, parameter: str, rank: int) -> float:
        """Alpha over the rank, or over its root; patterns are matched as PEFT matches them."""
        alpha = self.lora_alpha
        for key, value in (self.alpha_pattern or {}).items():
            names = (parameter.removesuffix(".weight"), parameter)
            if any(re.match(rf"(.*\.)?({key.pattern})$", name) for name in names):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update as a product of two factors."""

    left: torch.Tensor  # float32 [E, p, r]
    right: torch.Tensor  # float32 [E, r, q]; `left @ right` is in the layout of the weight

    @property
    def rank(self) -> int:
        """Columns of the left factor."""
        return self.left.shape[-1]

    def dense(self) -> torch.Tensor:
        """The product, float32 [E, p, q]."""
        return self.left @ self.right


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """LoRA on one weight."""

    item: Candidate  # the weight
    a: StoredTensor  # first matrix, as PEFT stores it
    b: StoredTensor  # second matrix, as PEFT stores it
    magnitude: StoredTensor | None  # lengths of the rows of DoRA; `None` for plain LoRA
    on_table: bool  # whether it is the LoRA of an embedding layer
    scale: float

    @property
    def kind(self) -> str:
        """`lora` or `dora`."""
        return "lora" if self.magnitude is None else "dora"

    @property
    def rank(self) -> int:
        """Rank of each matrix."""
        return self.a.shape[0] // self.item.matrices

    def factors(self) -> LowRank:
        """Both factors in the layout of the weight, scale and sign in the left one."""
        a, b = self.a.read().float(), self.b.read().float()
        if self.on_table:  # rows of the table are its outputs
            return LowRank((-self.scale * a.T)[None], b.T.contiguous()[None])
        a = a.reshape(self.item.matrices, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, self.item.matrices).permute(2, 0, 1)
        if self.item.storage == "in_out":
            return LowRank(-self.scale * a.mT, b.mT.contiguous())
        return LowRank(-self.scale * b, a)

    def merged(self, base: Rows) -> Iterator[torch.Tensor]:
        """The weight with its LoRA, some consecutive rows at a time, float32 [rows, last size]."""
        product = self.factors()
        count = max(1, _BLOCK_NUMBERS // product.right.shape[-1])

        def sums(place: int) -> Iterator[torch.Tensor]:
            start = place * product.left.shape[-2]
            for left in torch.split(product.left[place], count):
                stop = start + len(left)
                yield base(start, stop).float() - left @ product.right[place]
                start = stop

        for place in range(len(product.left)):
            if self.magnitude is None:
                yield from sums(place)
                continue
            # DoRA: each row of the sum, in the layout [out, in], is scaled to a length of its own.
            length = self.magnitude.read().float().flatten()
            if self.item.storage == "in_out":
                squares = torch.stack([part.square().sum(0) for part in sums(place)])
                scale = length / squares.sum(0).sqrt()
                yield from (part * scale for part in sums(place))
                continue
            for part, wanted in zip(sums(place), torch.split(length, count), strict=True):
                yield part * (wanted / torch.linalg.vector_norm(part, dim=-1))[:, None]


class Adapter:
    """A PEFT adapter beside its base model.

    Attributes:
        base: The model that it was trained on.
        lora: LoRA by the name of its weight.
        copies: Weights trained in full, by name.
        items: The trained matrices by name.
    """

    def __init__(self, name: str, folder: Path, base: StoredWeights) -> None:
        self.name, self.folder, self.base = name, folder, base
        self._read_config(folder / ADAPTER_CONFIG)
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            pickle = f": pickle weights ({ADAPTER_PICKLE}) can run code when opened"
            raise ModelError(
                f"The adapter '{name}' has no {ADAPTER_WEIGHTS}"
                f"{pickle if (folder / ADAPTER_PICKLE).is_file() else ''}.",
                hint="Load it with PEFT and save_pretrained(DIRECTORY).",
            )
        self.lora: dict[str, Lora] = {}
        self.copies: dict[str, StoredTensor] = {}
        # Every weight of the base, candidate or not.
        every = {item.parameter: item for item in find_modules(base.shape)}
        held = base.shape.state_dict()
        for parameter, parts in self._file(file_tensors(path)).items():
            if parameter not in self.copies:
                self.lora[parameter] = self._lora(parameter, parts, every.get(parameter))
        for parameter, tensor in self.copies.items():
            if tensor.shape != tuple(held[parameter].shape):
                raise self._misfit(parameter, tensor.shape, held[parameter].shape)
        self.items = {key: item for key, item in every.items() if key in self.parameters}
        named = str(self.config.get("base_model_name_or_path") or "")
        same = Path(named).name in ("", base.directory.name, Path(base.name).name)
        self.notes = () if same else (
            f"'{name}' names {named} as its base model; it is read beside {base.name}.",
        )  # fmt: skip

    def _read_config(self, path: Path) -> None:
        config = read_json(path)
        if config.get("peft_type") != "LORA":
            raise self._unreadable(f"it is of type {config.get('peft_type')}")
        for option, kind in _REFUSED.items():
            if config.get(option):
                raise self._unreadable(f"it uses {kind} ({option})")
        init = config.get("init_lora_weights")
        if str(init).lower().startswith(_CHANGES_BASE):
            raise self._unreadable(f"init_lora_weights is {init}, which changes the base weights")
        try:
            self.config, self._scales = config, _Scales.model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ModelError(f"'{path}' is damaged at {place}: {first['msg']}.") from error

    def _unreadable(self, what: str) -> ModelError:
        return ModelError(
            f"The adapter '{self.name}' cannot be read: {what}.",
            hint="Merge it with PEFT (merge_and_unload), and name the merged model instead.",
        )

    @property
    def parameters(self) -> set[str]:
        """Names of all weights that were trained."""
        return {*self.lora, *self.copies}

    def rank_of(self, item: Candidate) -> int | None:
        """Rank of the LoRA on a weight; `None` for one trained in full or not at all."""
        found = self.lora.get(item.parameter)
        return None if found is None else found.rank

    def rounding(self, _item: Candidate) -> float:
        """0: the update is stored, not its sum with the base."""
        return 0.0

    def update(self, item: Candidate, base: Rows | None = None) -> torch.Tensor | LowRank | None:
        """Base minus trained weight as `Checkpoint.update`; of plain LoRA two factors of it."""
        name = item.parameter
        if name not in self.parameters:
            return None
        lora = self.lora.get(name)
        if lora is not None and lora.magnitude is None:
            product = lora.factors()
            return product if bool(product.left.any()) and bool(product.right.any()) else None
        base = base or self.base.rows(name)
        shape = self.base.shape.get_parameter(name).shape
        return difference(shape, base, self.trained(name, base))

    def trained(self, name: str, base: Rows | None = None) -> Iterator[torch.Tensor]:
        """A trained weight, some consecutive rows at a time, [rows, last size]."""
        if name in self.lora:
            return self.lora[name].merged(base or self.base.rows(name))
        return in_parts(self.copies[name].shape, self.copies[name].rows)

    def _file(self, tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
        """File every tensor under its weight: copies in `copies`; gives the parts of LoRA."""
        found: dict[str, dict[str, StoredTensor]] = {}
        lost: set[str] = set()
        for key, tensor in sorted(tensors.items()):
            name = _WRAPPERS.sub("", key).removeprefix(ADAPTER_PREFIX)
            part = _PART.fullmatch(name)
            if part is not None:
                parameter = self._target(part["module"])
                if parameter is None:
                    lost.add(part["module"].replace(_WRAPPED, ""))
                else:
                    found.setdefault(parameter, {})[part["matrix"] or part["magnitude"]] = tensor
                continue
            if "lora_" in name or "token_adapter" in name:
                raise self._unreadable(f"it holds a tensor {key}")
            if f"{_WRAPPED}." in name and not name.endswith(".bias"):
                continue  # the untrained weight under a LoRA, saved beside it
            name = name.replace(_WRAPPED, "").replace(".modules_to_save.default", "")
            current = self.base.current_name(name)
            if current is None:
                lost.add(name)
            else:
                self.copies[current] = tensor
        if lost:
            named = self.config.get("base_model_name_or_path")
            raise ModelError(
                f"'{self.name}' is an adapter for other modules: the base model has no "
                f"{first_of(sorted(lost), 3)}.",
                hint=f"Its {ADAPTER_CONFIG} names {named} as the base model." if named else "",
            )
        return found

    def _target(self, module: str) -> str | None:
        """Name of the weight that a LoRA belongs to; `None` where the base has no such module."""
        depth = module.count(_WRAPPED)
        plain = module.replace(_WRAPPED, "")
        current = self.base.current_name(f"{plain}.weight")
        if current is not None:
            return current
        try:
            holder = self.base.shape.get_submodule(plain)
        except AttributeError:
            return None
        # PEFT wraps the parameters of one module in turn: the first declared lies innermost.
        targets = tuple(f".{target}" for target in self._scales.target_parameters or ())
        names = [f"{plain}.{leaf}" for leaf, _ in holder.named_parameters(recurse=False)]
        wrapped = [name for name in names if f".{name}".endswith(targets)]
        place = len(wrapped) - 1 - depth
        return wrapped[place] if 0 <= place < len(wrapped) else None

    def _lora(
        self, parameter: str, parts: Mapping[str, StoredTensor], item: Candidate | None
    ) -> Lora:
        on_table = "lora_embedding_A" in parts
        prefix = "lora_embedding_" if on_table else "lora_"
        if not {f"{prefix}A", f"{prefix}B"} <= parts.keys():
            raise self._unreadable(f"{parameter} lacks one of its LoRA matrices")
        a, b = parts[f"{prefix}A"], parts[f"{prefix}B"]
        magnitude = parts.get("lora_magnitude_vector")
        if item is None or (on_table and magnitude is not None):
            raise self._unreadable(f"the LoRA on {parameter} is of an unknown kind")
        inputs, outputs = item.in_features, item.out_features
        if on_table:
            inputs, outputs = outputs, inputs
        rank = (a.shape or (0,))[0] // item.matrices
        width = rank * item.matrices
        if (a.shape, b.shape) != ((width, inputs), (outputs, width)) or rank < 1:
            raise self._misfit(parameter, (*a.shape[1:], *b.shape[:1]), (inputs, outputs))
        scale = self._scales.scale(parameter, rank)
        return Lora(item=item, a=a, b=b, magnitude=magnitude, on_table=on_table, scale=scale)

    def _misfit(
        self, parameter: str, found: tuple[int, ...], planned: tuple[int, ...]
    ) -> ModelError:
        return ModelError(
            f"'{self.name}' is not for this base model: it has sizes {list(found)} for "
            f"{parameter}, and the model {list(planned)}.",
            hint="Name the model that the adapter was trained on.",
        )


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
        """Base minus trained weight, float32 [E, p, q]; `None` where they are equal."""
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


def diverged(trained: Trained, parameter: str) -> ModelError:
    """The error of a training that holds a weight which is not finite."""
    return ModelError(
        f"'{trained.name}' or the base holds NaN or infinity in {parameter}.",
        hint="The training has diverged there: name an earlier checkpoint.",
    )


def open_trained(
    name: str, base: StoredWeights, settings: ModelSettings, modules: Sequence[Candidate] = ()
) -> Trained:
    """Open a training, a directory or hub id, and refuse one of another base model.

    Args:
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
