"""An untrained PEFT adapter that carries a whole plan into any trainer that takes an adapter.

It computes what the base model computes: LoRA's `B` is zero, and the modules trained in full are
copies of the base weights, taken straight from the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.plan_file import plan_text
from hlscore.exporters.base_weights import BaseTensor, base_tensors
from hlscore.exporters.formats import Exporter, ExportSettings, Writer, text_file
from hlscore.exporters.peft import PEFT_LIMITS, adapter_config, config_text
from hlscore.exporters.peft_names import full_name, lora_name
from hlscore.inputs.tensor_files import NewTensor, write_tensors
from hlscore.reasons import tied_to

_PREFIX = "base_model.model."
_CHUNK_NUMBERS = 1 << 22

# Gives that many float32 numbers, little-endian.
_Source = Callable[[int], NDArray[np.float32]]


def seed_files(plan: Plan, settings: ExportSettings) -> dict[str, Writer]:
    """Files of the adapter.

    The base model is found, read and checked when the weights are written: the folder they go to
    is looked at first.

    Args:
        plan: A plan within PEFT's limits.
        settings: Where the base model is, and whether other weights are accepted.

    Returns:
        Writers of `adapter_config.json`, `adapter_model.safetensors` and `plan.json`; the second
        one raises ModelError where the base model is not the plan's.

    Raises:
        ArtifactError: The plan was written by an hlscore too old for this.
    """
    config = adapter_config(plan, settings.base(plan))

    def write_weights(path: Path) -> None:
        tensors = full_tensors(plan, base_tensors(plan, settings)) | adapter_tensors(plan)
        metadata = {
            "format": "pt",
            "hlscore_structure": plan.model.fingerprint.structure,
            "hlscore_weights": plan.model.fingerprint.weights,
        }
        write_tensors(path, tensors, metadata)

    return {
        "adapter_config.json": text_file(config_text(config)),
        "adapter_model.safetensors": write_weights,
        "plan.json": text_file(plan_text(plan)),
    }


def full_tensors(plan: Plan, stored: Mapping[str, BaseTensor]) -> dict[str, NewTensor]:
    """Copies of the weights of modules trained in full, with their biases and buffers.

    A tied weight is copied once for each of its names: PEFT looks for all of them.

    Args:
        plan: The plan.
        stored: Tensors of the base model by name.

    Returns:
        Tensors by their name in the adapter.
    """
    found = {}
    for holder in sorted({full_name(item) for item in plan.full}):
        for name, tensor in stored.items():
            if name.startswith(f"{holder}."):
                found[_PREFIX + name] = _copy(tensor)
    for item in plan.full:
        tied = (other for other in plan.skipped if other.reason == tied_to(item.module))
        found |= {_PREFIX + other.parameter: _copy(stored[item.parameter]) for other in tied}
    return found


def _copy(tensor: BaseTensor) -> NewTensor:
    return NewTensor(dtype=tensor.dtype, shape=tensor.shape, size=tensor.size, chunks=tensor.chunks)


def adapter_tensors(plan: Plan) -> dict[str, NewTensor]:
    """Untrained LoRA matrices: `A` drawn as PEFT draws it, `B` zero; float32.

    Args:
        plan: The plan.

    Returns:
        Tensors by their name in the adapter.
    """
    found: dict[str, NewTensor] = {}
    for item in plan.lora_modules:
        rank = (item.rank or 0) * item.matrices
        name = _PREFIX + _wrapped_name(plan, item)
        if item.form == "embedding":  # its rows are the outputs; A is zero, B is drawn
            found[f"{name}.lora_embedding_A"] = _zeros(rank, item.out_features)
            found[f"{name}.lora_embedding_B"] = _normal(plan, item, item.in_features, rank)
        else:
            found[f"{name}.lora_A.weight"] = _uniform(plan, item, rank, item.in_features)
            found[f"{name}.lora_B.weight"] = _zeros(item.out_features, rank)
    return found


def _wrapped_name(plan: Plan, item: PlanModule) -> str:
    """Name of the module that holds an adapter; two on one module lie inside each other."""
    if item.form != "experts":
        return lora_name(plan, item).removesuffix(".weight")
    holder = full_name(item)
    inside = sorted(
        (other for other in plan.lora_modules
         if other.form == "experts" and full_name(other) == holder),
        key=_declared,
    )  # fmt: skip
    outer = len(inside) - 1 - inside.index(item)
    return holder + ".base_layer" * outer


def _declared(item: PlanModule) -> tuple[bool, str]:
    """Order in which models declare the tensors of their experts: the last map comes last."""
    return "down" in item.kind, item.kind


def _zeros(rows: int, columns: int) -> NewTensor:
    return _float32(rows, columns, lambda: lambda count: np.zeros(count, dtype=np.float32))


def _uniform(plan: Plan, item: PlanModule, rows: int, columns: int) -> NewTensor:
    bound = np.float32(1 / math.sqrt(columns))

    def source() -> _Source:
        generator = _generator(plan, item)
        return lambda count: (2 * generator.random(count, dtype=np.float32) - 1) * bound

    return _float32(rows, columns, source)


def _normal(plan: Plan, item: PlanModule, rows: int, columns: int) -> NewTensor:
    def source() -> _Source:
        generator = _generator(plan, item)
        return lambda count: generator.standard_normal(count, dtype=np.float32)

    return _float32(rows, columns, source)


def _generator(plan: Plan, item: PlanModule) -> np.random.Generator:
    """One generator per module, so that a plan gives the same adapter everywhere."""
    text = f"{plan.provenance.seed}:{plan.model.fingerprint.structure}:{item.module}:{item.rank}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _float32(rows: int, columns: int, start: Callable[[], _Source]) -> NewTensor:
    """A matrix whose numbers are drawn when it is written, a part at a time."""

    def chunks() -> Iterator[bytes]:
        draw, left = start(), rows * columns
        while left > 0:
            count = min(left, _CHUNK_NUMBERS)
            left -= count
            yield draw(count).astype("<f4", copy=False).tobytes()

    return NewTensor(dtype="F32", shape=(rows, columns), size=4 * rows * columns, chunks=chunks)


EXPORTER = Exporter(
    name="seed-adapter",
    summary="an untrained PEFT adapter equal to the base model; for any trainer that goes on from "
    "an adapter, with ranks per module",
    limits=PEFT_LIMITS,
    files=seed_files,
    folder=True,
    usage="PeftModel.from_pretrained(model, '{out}', is_trainable=True)",
    rates=False,
)
