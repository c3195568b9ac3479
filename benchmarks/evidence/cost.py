"""What does a step cost? Bytes and seconds of a hybrid, and of LoRA with as many parameters.

`python benchmarks/evidence/cost.py` trains a random model of 41 M parameters for a few steps, the
ways in turn, and says at which rank LoRA on every candidate would take as many bytes as the hybrid
does, and how much longer its steps are at equal parameters. Writes a dated result file.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arms import Arm, Planner, hybrid
from rich.progress import track
from torch import nn
from transformers import AutoTokenizer

import hlscore
from hlscore.planning.baselines import nearest_rank

sys.path.append(str(Path(__file__).resolve().parent.parent))
from machine import parsed, print_table, write_result
from memory import Tensors
from models import VOCABULARY, build


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step of one way costs."""

    parameters: int  # trained parameters
    state_bytes: int  # weights, gradients and moments of AdamW
    peak_bytes: int  # most bytes at a time in a step, activations too
    seconds: float  # median of a step


class Way:
    """One way to train, ready for steps on a batch of token ids [sequences, tokens]."""

    def __init__(self, arm: Arm, model: Any, ids: torch.Tensor) -> None:
        self.name, self._ids, self.seconds = arm.name, ids, list[float]()
        self.model: nn.Module = arm.wrap(model).train()
        self.trained = [value for value in self.model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(self.trained, lr=1e-5)

    def step(self) -> None:
        """Forward, backward, AdamW."""
        self.model(input_ids=self._ids, labels=self._ids).loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def timed_step(self) -> None:
        """A step whose seconds are kept."""
        began = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - began)

    def cost(self) -> Cost:
        """Count the bytes of one more step."""
        moments = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        weights = {value.data_ptr(): value for value in self.model.parameters()}
        held = [*weights.values(), *self.model.buffers(), *moments]
        tensors = Tensors()
        for tensor in held:
            tensors.hold(tensor, state=False)
        with tensors:
            self.step()
        gradients = sum(value.nbytes for value in self.trained)
        return Cost(
            parameters=sum(value.numel() for value in self.trained),
            state_bytes=sum(value.nbytes for value in held) + gradients,
            peak_bytes=tensors.peak,
            seconds=median(self.seconds),
        )


def equal_rank(hybrid_cost: float, ranks: Mapping[int, float]) -> float:
    """The rank at which LoRA costs as much as the hybrid, on the line through two ranks."""
    (low, cheap), (high, dear) = sorted(ranks.items())
    return low + (hybrid_cost - cheap) * (high - low) / (dear - cheap)


def main() -> None:
    """Measure, print, write."""
    options = parsed(
        __doc__, model="qwen3-41m", rank=16, budget="0.1", sequences=8, tokens=128, repeats=9
    )
    torch.set_num_threads(1)
    words = AutoTokenizer.from_pretrained(str(files("hlscore.inputs") / "builtin" / "tiny"))
    report = hlscore.rank(
        build(options.model), words, samples=32, max_length=64,
        rank=options.rank, movement="gradient",
    ).report  # fmt: skip
    planner = Planner(report=report, rank=options.rank)
    plan = planner.scored("hls", budget=options.budget)
    matched = nearest_rank(plan.totals.trained_params, report.candidates)
    arms = [planner.lora(options.rank), hybrid("hybrid hls", plan), planner.lora(matched),
            planner.full()]  # fmt: skip
    ids = torch.randint(VOCABULARY, (options.sequences, options.tokens))
    ways = [Way(arm, build(options.model), ids) for arm in arms]
    for way in ways:
        way.step()
    for _ in track(range(options.repeats), "steps", disable=not sys.stderr.isatty()):
        for way in ways:
            way.timed_step()
    costs = {way.name: way.cost() for way in ways}
    lora = {rank: costs[f"lora r={rank}"] for rank in (options.rank, matched)}
    ranks = {
        unit: equal_rank(
            getattr(costs["hybrid hls"], unit),
            {rank: getattr(cost, unit) for rank, cost in lora.items()},
        )
        for unit in ("parameters", "state_bytes", "peak_bytes")
    }
    longer = costs[f"lora r={matched}"].seconds / costs["hybrid hls"].seconds
    print_table(
        ("way", "trained parameters", "state MiB", "peak MiB", "seconds per step"),
        [
            (name, f"{cost.parameters:,}", f"{cost.state_bytes / 2**20:.1f}",
             f"{cost.peak_bytes / 2**20:.1f}", f"{cost.seconds:.3f}")
            for name, cost in costs.items()
        ],
    )  # fmt: skip
    for unit, rank in ranks.items():
        print(f"LoRA of rank {rank:.1f} has as many {unit.replace('_', ' ')}.")
    print(f"A step of LoRA r={matched} takes {longer:.3f} of the hybrid's.")
    content = {
        "settings": vars(options),
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "seconds": {way.name: way.seconds for way in ways},
        "lora_rank_of_equal": ranks,
        "seconds_of_equal_lora_over_hybrid": longer,
    }
    print(write_result("evidence_cost", content))


if __name__ == "__main__":
    main()
