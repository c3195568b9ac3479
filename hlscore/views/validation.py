"""What a trial found, in the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.views.commands import replan, scores_beside
from hlscore.views.sparkline import ASCII, UNICODE, sparkline
from hlscore.views.terminal import print_next, print_notes, print_table, terminal
from hlscore.views.wording import count, duration, memory, short, visible

_LABELS = {
    "lora": "LoRA",
    "matched": "LoRA of equal size",
    "random": "random choice",
    "largest": "largest modules",
    "plan": "the plan",
    "full": "full",
}


def print_validation(
    content: dict[str, Any], path: Path, plan: Plan, plan_path: Path,
    *, console: Console | None = None,
) -> None:  # fmt: skip
    """Print the verdict, the table, the curves and the next command.

    Args:
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    for line in content["verdict"]:
        console.print(Text(line, style="bold" if line == content["verdict"][0] else ""),
                      soft_wrap=True)  # fmt: skip
    console.print()
    print_table(console, _table(content))
    console.print()
    print_table(console, _curves(content, console.encoding))
    console.print()
    if content.get("also"):
        _print_forgetting(console, content["also"])
    print_notes(console, content["notes"])
    console.print(Text.assemble(("validation  ", "dim"), str(path)), soft_wrap=True)
    commands = [(f"hlscore show {shlex.quote(str(plan_path))}", "the plan that was tried out")]
    scores = scores_beside(plan, plan_path)
    if scores:
        commands.append(
            (
                replan(plan, scores, "--baseline", "lora-matched", "-o", "lora.json"),
                "LoRA with as many trained parameters, as a plan",
            )
        )
    print_next(console, *commands)


def print_validation_json(content: dict[str, Any], path: Path) -> None:
    """Print the figures as one JSON object."""
    print(json.dumps({"path": str(path), **content}))


def print_forecast(
    trainings: tuple[int, int], steps: int, seconds: float, arms: Sequence[tuple[str, float, int]],
    *, console: Console | None = None,
) -> None:  # fmt: skip
    """Print what a trial will take.

    Args:
        arms: Name, trained parameters and predicted bytes of each arm.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    least, most = trainings
    console.print(
        f"{least} to {most} trainings of {steps} steps, about {seconds:.1f} s each with "
        f"set-up and measuring: "
        f"{duration(least * seconds)} to {duration(most * seconds)}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("arm", "trained", "memory"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, params, size_bytes in arms:
        table.add_row(_LABELS[name], short(params), memory(size_bytes))
    print_table(console, table)


def print_forecast_json(
    trainings: tuple[int, int], steps: int, seconds: float, arms: Sequence[tuple[str, float, int]]
) -> None:
    """Print what a trial will take as one JSON object; arguments as in `print_forecast`."""
    least, most = trainings
    print(
        json.dumps(
            {
                "fewest_trainings": least,
                "most_trainings": most,
                "steps": steps,
                "seconds_per_training": seconds,
                "arms": [
                    {"name": name, "trained_params": params, "memory_bytes": size_bytes}
                    for name, params, size_bytes in arms
                ],
            }
        )
    )


def _table(content: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in (
        "arm",
        "trained",
        "rank",
        "rates",
        "loss",
        "95 %",
        "gap recovered",
        "s in steps",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, arm in content["arms"].items():
        tried = [item for item in arm["rate_factors"] if item["tuning_loss"] is not None]
        best = min(tried, key=lambda item: item["tuning_loss"], default=None)
        share = arm["recovered"]
        table.add_row(
            Text(_LABELS[name], style="bold" if name == "plan" else ""),
            short(arm["trained_params"]),
            "" if name == "full" else str(arm["lora_rank"]),
            "?" if best is None else f"x {best['factor']:.3g}",
            *_loss(arm["loss"]),
            ""
            if share is None or share["value"] is None or name in ("lora", "full")
            else f"{100 * share['value']:.0f} % [{100 * share['low']:.0f}, "
            f"{100 * share['high']:.0f}]",
            f"{arm['seconds_per_training']:.1f}",
        )
    return table


def _print_forgetting(console: Console, also: dict[str, Any]) -> None:
    """Print the loss on other data before and after, of each arm."""
    console.print(
        f"{count(also['examples'], 'example')} of {visible(also['source'])}: "
        f"{also['untrained_loss']:.4f} nats per token before the training",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("arm", "after", "forgotten", "by seed"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, arm in also["arms"].items():
        known = arm["loss"] is not None
        table.add_row(
            _LABELS[name],
            f"{arm['loss']:.4f}" if known else "diverged",
            f"{arm['forgotten']:+.4f}" if known else "",
            " ".join("?" if loss is None else f"{loss:.4f}" for loss in arm["seeds"]),
        )
    print_table(console, table)
    console.print()


def _loss(loss: dict[str, float | None]) -> tuple[str, str]:
    value, low, high = (loss[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "diverged", ""
    return f"{value:.4f}", f"{low:.4f} to {high:.4f}"


def _curves(content: dict[str, Any], encoding: str) -> Table:
    """Test loss along the training, from the best end to the start as blocks."""
    levels = UNICODE if "utf" in encoding.lower() else ASCII
    table = Table(box=None, pad_edge=False, show_header=False)
    curves = {
        name: [content["untrained_loss"], *arm["curve"]["mean"]]
        for name, arm in content["arms"].items()
        if None not in arm["curve"]["mean"]
    }
    floor = min(map(min, curves.values()), default=0.0)
    for name, above in curves.items():
        heights = [value - floor for value in above]
        table.add_row(
            _LABELS[name],
            sparkline(heights, levels=levels),
            f"{above[0]:.4f} to {above[-1]:.4f}",
            f"in {count(content['arms'][name]['curve']['steps'][-1], 'step')}",
        )
    return table
