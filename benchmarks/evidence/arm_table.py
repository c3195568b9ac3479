"""The table of every arm of one base model and task, and those arms as result files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from analysis import (
    Entry,
    against,
    gap,
    gap_recovered,
    lora_of_size,
    losses,
    percent,
    pooled,
)  # fmt: skip
from journal import lines_of, path_of
from published import heading
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


def arm_table(arms: Arms, unit: str) -> list[str]:
    """What LoRA lacks, and every arm; without a gap recovered where LoRA does not lag."""
    lora, full, plain = arms[f"lora r={RANK}"], arms["full"], uniform(arms)
    lag = gap(lora, full)
    lines = [
        f"LoRA of rank {RANK} lags full fine-tuning by {lag.value:.4f} "
        f"[{lag.low:.4f}, {lag.high:.4f}] {unit}.",
        "",
        *heading(
            "arm", "trained parameters", "test loss", "gap recovered", "against LoRA of equal size"
        ),
    ]
    for name, entry in arms.items():
        if "trials" not in entry:
            continue
        known = str(gap_recovered(entry, lora, full)) if lag.low > 0 else "no gap"
        if entry is lora:
            known = "reference"
        size, loss = entry["parameters"], losses(entry).mean()
        peer = against(entry, lora_of_size(plain, size))
        over = percent(peer.value, peer.low, peer.high)
        lines.append(f"| {name} | {size:,.0f} | {loss:.4f} | {known} | {over} |")
    return lines


def result_of(arms: Arms) -> dict[str, dict[str, Any]]:
    """Arms as a result file holds them: without losses of single examples, and nothing pooled."""
    found = {}
    for name, entry in arms.items():
        if name in DRAWN:
            continue
        found[name] = {k: value for k, value in entry.items() if k not in ("trials", "name")}
        if "trials" in entry:
            found[name]["trials"] = [
                {
                    **trial["trial"],
                    "loss": round(float(np.mean(trial["losses"])), 6),
                    "accuracy": trial["accuracy"],
                    # As text, one line each: there are thousands.
                    "curve": " ".join(map(str, trial["curve"])),
                }
                for trial in entry["trials"]
            ]
    return found
