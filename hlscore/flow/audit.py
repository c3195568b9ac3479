"""What a finished training did to a model: which modules moved, and which used their rank."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from transformers import PreTrainedModel

from hlscore.agreement.measures import kendall
from hlscore.artifacts.plan import Plan
from hlscore.errors import ModelError, UsageError, first_line
from hlscore.flow.updates import Moved
from hlscore.inputs.examples import read_examples
from hlscore.inputs.hub import find_adapter
from hlscore.inputs.model import load_model
from hlscore.probes.encode import encode
from hlscore.probes.units import counted_tokens, example_sums
from hlscore.records import ScoreReport
from hlscore.settings import DataSettings, ModelSettings

_HARDLY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a training did to a model."""

    report: ScoreReport
    movements: Mapping[str, Moved]  # what the report has no columns for, by module
    # Modules by what became of them, in the order of the report: `unmoved`; `hardly` (less than a
    # tenth of the median); `exhausted` and `spare` (the whole rank, or at most half of it, is
    # needed for 99 % of the update).
    groups: Mapping[str, Sequence[str]]
    # The plan of the training compared with what happened, if one was given: Kendall's tau-b of
    # its scores and the energies of the updates by mode (modules in full and with LoRA move by
    # different rates), and groups of modules.
    against: Mapping[str, Any] | None


def audit_of(report: ScoreReport, movements: Mapping[str, Moved], plan: Plan | None) -> Audit:
    """Find which modules moved, which used their rank, and how that fits the plan."""
    moved = {
        name: found
        for name, found in movements.items()
        if found.rank_for_99 is not None or found.relative > 0
    }
    median = statistics.median(found.relative for found in moved.values())
    needed = [
        (name, found.rank_for_99, found.lora_rank)
        for name, found in moved.items()
        if found.lora_rank and found.rank_for_99 is not None
    ]
    exhausted = [name for name, need, rank in needed if need >= rank > 1]
    groups = {
        "unmoved": [name for name in movements if name not in moved],
        "hardly": [name for name, found in moved.items() if found.relative < _HARDLY * median],
        "exhausted": exhausted,
        "spare": [
            name for name, need, rank in needed if 2 * need <= rank and name not in exhausted
        ],
    }
    against = None
    if plan is not None:
        energies = {row.module: row.grad_energy for row in report.candidates}
        known = [item for item in plan.modules if item.module in energies]
        modes = {
            mode: [item for item in known if item.mode == mode]
            for mode in ("full", "lora", "frozen")
        }
        against = {
            "kendall": {
                mode: kendall(
                    [item.score for item in modes[mode]],
                    [energies[item.module] for item in modes[mode]],
                ).tau
                for mode in ("full", "lora")
            },
            "frozen_moved": [item.module for item in modes["frozen"] if energies[item.module]],
            "trained_unmoved": [
                item.module for item in known if item.mode != "frozen" and not energies[item.module]
            ],
            "other_rank": [
                item.module
                for item in modes["lora"]
                if movements[item.module].lora_rank not in (item.rank, None)
            ],
        }
    return Audit(report=report, movements=movements, groups=groups, against=against)


class HeldOutLosses(TypedDict):
    """Losses on the same held-out data."""

    source: str  # of the data
    examples: int
    losses: dict[str, float]  # by name, that of the `base` model first; nats per counted token


def held_out_losses(
    base: ModelSettings, data: DataSettings, runs: Mapping[str, str]
) -> HeldOutLosses:
    """The loss of a base model and of its trainings, PEFT adapters or whole models by name."""
    examples = read_examples(data, seed=0)
    loaded = load_model(base)
    probes = encode(
        examples, loaded.tokenizer, loaded.model,
        max_length=data.max_length, groups=2, seed=0, halves=False,
    )  # fmt: skip

    def loss(model: torch.nn.Module) -> float:
        sums = example_sums(model.eval(), probes.sequences, probes.pad_token_id, batch_size=16)
        return sum(sums) / counted_tokens(probes.sequences)

    # One model at a time is held, and the base is loaded again where another adapter needs it.
    losses = {"base": loss(loaded.model)}
    model: PreTrainedModel | None = loaded.model
    del loaded
    for name, run in runs.items():
        named = replace(base, model=run, revision=None)
        folder = find_adapter(named)
        if folder is None:
            model = None
            losses[name] = loss(load_model(named).model)
            continue
        try:
            from peft import PeftModel
        except ImportError as error:
            raise UsageError(
                "Adapters are loaded with PEFT, which is not installed.",
                hint="Run pip install 'hlscore[peft]', or remove --data.",
            ) from error
        if model is None:
            model = load_model(base).model
        try:
            wrapped = PeftModel.from_pretrained(model, folder)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"PEFT cannot load '{run}': {first_line(error)}") from error
        losses[name] = loss(wrapped)
        # Copies of modules stay in a model that PEFT unloads: the next one starts anew.
        del wrapped
        model = None
    return {"source": str(data.data), "examples": len(probes.sequences), "losses": losses}
