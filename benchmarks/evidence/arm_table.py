"""The table of every arm of one base model and task, and those arms as result files hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from analysis import (
    Entry,
    Figure,
    against,
    gap,
    gap_recovered,
    lora_of_size,
    losses,
    percent,
    pooled,
)  # fmt: skip
from journal import lines_of, path_of
from replicas import LARGEST
from study import EQUAL, RANDOM, RANK, UNIFORM_RANKS

# Random draws that are also reported as one arm.
DRAWN = (RANDOM, EQUAL, LARGEST)

Arms = Mapping[str, Entry]


def finished_arms(base: str, task: str, draws: int) -> Arms:
    """The arms of a base model and a task by name, with so many random draws also as one."""
    arms: dict[str, Entry] = {line["name"]: line for line in lines_of(path_of(base, task))}
    for drawn in DRAWN:
        found = [arms[name] for place in range(draws) if (name := f"{drawn} {place}") in arms]
        if len(found) == draws:
            arms[drawn] = pooled(found)
    return arms


def uniform(arms: Arms) -> list[Entry]:
    """LoRA of the ranks of the study."""
    return [arms[f"lora r={rank}"] for rank in UNIFORM_RANKS if f"lora r={rank}" in arms]


def arm_rows(arms: Arms) -> Iterable[tuple[str, float, float, Figure, Figure]]:
    """Name, parameters, loss, gap recovered, and logarithm of loss over LoRA of equal size."""
    lora, full, plain = arms[f"lora r={RANK}"], arms["full"], uniform(arms)
    for name, entry in arms.items():
        if "trials" in entry:
            peer = lora_of_size(plain, entry["parameters"])
            yield (
                name,
                entry["parameters"],
                float(losses(entry).mean()),
                gap_recovered(entry, lora, full),
                against(entry, peer),
            )


def arm_table(arms: Arms, unit: str) -> list[str]:
    """What LoRA lacks, and every arm; without a gap recovered where LoRA does not lag."""
    lag = gap(arms[f"lora r={RANK}"], arms["full"])
    lines = [
        f"LoRA of rank {RANK} lags full fine-tuning by {lag.value:.4f} "
        f"[{lag.low:.4f}, {lag.high:.4f}] {unit}.",
        "",
        "| arm | trained parameters | test loss | gap recovered | against LoRA of equal size |",
        "|---|---|---|---|---|",
    ]
    for name, size, loss, recovered, peer in arm_rows(arms):
        known = str(recovered) if lag.low > 0 else "no gap"
        if name == f"lora r={RANK}":
            known = "reference"
        over = percent(peer.value, peer.low, peer.high)
        lines.append(f"| {name} | {size:,.0f} | {loss:.4f} | {known} | {over} |")
    return lines


def result_of(arms: Arms) -> dict[str, dict[str, Any]]:
    """Arms as a result file holds them: without losses of single examples, and nothing pooled."""
    return {name: _without_examples(entry) for name, entry in arms.items() if name not in DRAWN}


def _without_examples(entry: Entry) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in ("trials", "name")}
    if "trials" in entry:
        kept["trials"] = _means(entry["trials"])
    return kept


def _means(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "seed": trial["trial"]["seed"],
            "full_rate": trial["trial"]["full_rate"],
            "lora_rate": trial["trial"]["lora_rate"],
            "loss": round(float(np.mean(trial["losses"])), 6),
            "accuracy": trial["accuracy"],
            # As text, one line each: there are thousands.
            "curve": " ".join(map(str, trial["curve"])),
        }
        for trial in trials
    ]
