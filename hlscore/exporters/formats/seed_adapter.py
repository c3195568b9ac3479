"""An untrained PEFT adapter that carries a whole plan into any trainer that takes an adapter.

It computes what the base model computes: LoRA's `B` is zero, and the modules trained in full are
copies of the base weights, taken straight from the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import plan_text
from hlscore.exporters.adapter_config import lora_name
from hlscore.exporters.base_weights import base_weights
from hlscore.exporters.exporter import Export, Exporter, Writer
from hlscore.exporters.limits import PEFT_LIMITS
from hlscore.inputs.hub import ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS
from hlscore.inputs.tensor_files import NewTensor, write_tensors
from hlscore.settings import ModelSettings

_CHUNK_NUMBERS = 1 << 22


def _files(export: Export) -> dict[str, str | Writer]:
    """The adapter's files."""
    plan, fingerprint = export.plan, export.plan.model.fingerprint

    def write_weights(path: Path) -> None:
        # The base model is found and read only now: the output folder is checked first.
        base = ModelSettings(
            model=export.base,
            revision=export.adapter["revision"],
            architecture=plan.model.architecture,
            ignore_adapter=True,  # the plan names modules of the base model
        )
        stored, weights_hash = base_weights(plan, base)
        if not export.allow_other_weights and weights_hash() != fingerprint.weights:
            warnings.warn(
                f"The weights of '{base.model}' are not those that the plan was made from: its "
                "scores may not hold. --allow-other-weights accepts them.",
                stacklevel=2,
            )
        # Full modules with their biases and buffers. A tied weight is copied once for each of its
        # names: PEFT looks for all of them.
        holders = tuple(f"{item.holder}." for item in plan.full)
        tensors = {name: each for name, each in stored.items() if name.startswith(holders)}
        for item in plan.full:
            tied = (other for other in plan.skipped if other.tied_to == item.module)
            tensors |= {other.parameter: stored[item.parameter] for other in tied}
        tensors |= adapter_tensors(plan)
        metadata = {
            "format": "pt",
            "hlscore_structure": fingerprint.structure,
            "hlscore_weights": fingerprint.weights,
        }
        write_tensors(path, {ADAPTER_PREFIX + name: tensors[name] for name in tensors}, metadata)

    return {
        ADAPTER_CONFIG: export.adapter_text,
        ADAPTER_WEIGHTS: write_weights,
        "plan.json": plan_text(plan),
    }


def adapter_tensors(plan: Plan) -> dict[str, NewTensor]:
    """Untrained LoRA matrices by name: `A` drawn as PEFT draws it, `B` zero; float32."""
    found: dict[str, NewTensor] = {}
    for item in plan.lora_modules:
        rank = (item.rank or 0) * item.matrices
        name = lora_name(plan, item).removesuffix(".weight")
        if item.form == "experts":
            # Adapters on one module lie inside each other, in the order in which models declare
            # the tensors of their experts: the last map comes last.
            holder = item.holder
            stacks = [
                other for other in plan.lora_modules
                if other.form == "experts" and other.holder == holder
            ]  # fmt: skip
            stacks.sort(key=lambda other: ("down" in other.kind, other.kind))
            name = holder + ".base_layer" * (len(stacks) - 1 - stacks.index(item))
        # One generator per module, so that a plan gives the same adapter everywhere.
        seed = (
            f"{plan.provenance.seed}:{plan.model.fingerprint.structure}:{item.module}:{item.rank}"
        )
        if item.form == "embedding":  # its rows are the outputs; A is zero, B is drawn
            found[f"{name}.lora_embedding_A"] = _matrix(rank, item.out_features)
            found[f"{name}.lora_embedding_B"] = _matrix(item.in_features, rank, seed)
        else:
            bound = 1 / math.sqrt(item.in_features)
            found[f"{name}.lora_A.weight"] = _matrix(rank, item.in_features, seed, bound)
            found[f"{name}.lora_B.weight"] = _matrix(item.out_features, rank)
    return found


def _matrix(rows: int, columns: int, seed: str = "", bound: float | None = None) -> NewTensor:
    """A matrix made when it is written: zero, or with a seed normal or uniform within a bound."""

    def chunks() -> Iterator[bytes]:
        digest = hashlib.sha256(seed.encode()).digest()
        bits = np.random.PCG64(int.from_bytes(digest[:16], "little"))
        generator, left = np.random.Generator(bits), rows * columns
        while left > 0:
            count = min(left, _CHUNK_NUMBERS)
            left -= count
            if not seed:
                drawn = np.zeros(count, np.float32)
            elif bound is None:
                drawn = generator.standard_normal(count, np.float32)
            else:
                drawn = (2 * generator.random(count, np.float32) - 1) * np.float32(bound)
            yield drawn.astype("<f4", copy=False).tobytes()

    return NewTensor(dtype="F32", shape=(rows, columns), size=4 * rows * columns, chunks=chunks)


EXPORTER = Exporter(
    name="seed-adapter",
    summary="an untrained PEFT adapter equal to the base model; for any trainer that continues "
    "an adapter, with ranks per module",
    limits=PEFT_LIMITS,
    files=_files,
    folder=True,
    rates=0,
    usage="PeftModel.from_pretrained(model, '{out}', is_trainable=True)",
)
