"""Older versions of `plan.json`, turned into the newest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hlscore.errors import ArtifactError

if TYPE_CHECKING:
    from hlscore.artifacts.plan import Plan

UPGRADED_NOTE = (
    "This plan was written in schema version 1, which knows neither memory nor what holds a "
    "weight: every one-matrix weight counts as a linear layer. `hlscore plan` on new scores says "
    "more."
)
_NO_MEMORY = (
    "frozen_bytes", "copy_bytes", "full_bytes", "adapter_bytes", "gradient_bytes",
    "optimizer_bytes", "activation_bytes", "total_bytes",
)  # fmt: skip


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Turn a plan of any known version into the newest one.

    Args:
        document: The JSON object of a plan whose `schema_version` is known.

    Returns:
        The same plan in the newest version; not validated.
    """
    return _from_version_1(document) if document["schema_version"] == 1 else document


def refuse_upgraded(plan: Plan, use: str) -> None:
    """Refuse a plan of version 1 where its model has to be recognized.

    Version 1 lists no weights but the candidates, and its hash of the weights is another one.
    """
    if plan.upgraded:
        raise ArtifactError(
            f"The plan for '{plan.model.name}' was written by an older hlscore, in schema version "
            f"1, which says too little of the model for {use}.",
            hint="Make it again with `hlscore rank`, or `hlscore plan` on new scores.",
        )


def _from_version_1(old: dict[str, Any]) -> dict[str, Any]:
    modules = [_module(item) for item in old["modules"]]
    totals, budget = dict(old["totals"]), dict(old["budget"])
    share, of_modules = budget.pop("share"), budget["unit"] == "modules"
    whole = totals["candidate_modules" if of_modules else "candidate_params"]
    return {
        **old,
        "schema_version": 2,
        "method": "score",
        "budget": {
            **budget,
            "limit": int(share * whole + 1e-9 * whole),
            "counts": "full",
            "trained_limit": None,
            "spent": totals["full_modules" if of_modules else "full_params"],
        },
        "solver": {
            "name": "sorted" if of_modules else "HiGHS",
            "value": float(sum(item["score"] or 0 for item in modules if item["mode"] == "full")),
            "gap": 0.0 if of_modules else 1e-6,
            "value_power": None,
        },
        "lora": {**old["lora"], "ranks": []},
        "totals": {**totals, "frozen_modules": 0},
        "memory": {
            "optimizer": "adamw",
            "master": "fp32",
            "base_bits": 16,
            "train_batch": 1,
            "train_length": 2048,
            **dict.fromkeys(_NO_MEMORY, 0),
        },
        "modules": modules,
        "skipped": [],
        "notes": [*old["notes"], UPGRADED_NOTE],
    }


def _module(item: dict[str, Any]) -> dict[str, Any]:
    stacked = item["parameter"] == item["module"]
    return {
        **item,
        "locked": False,
        "block": "",
        "form": "experts" if stacked else "linear",
        "storage": "out_in",
    }
