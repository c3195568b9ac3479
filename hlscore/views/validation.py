"""What `validate` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hlscore.artifacts.plan import Plan
from hlscore.views.drawings import sparkline
from hlscore.views.next_commands import matched_lora, scores_beside
from hlscore.views.terminal import Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, duration, memory, short, visible

if TYPE_CHECKING:
    from hlscore.validation.training import Validation

_LABELS = {
    "lora": "LoRA",
    "matched": "LoRA of equal size",
    "rslora": "rsLoRA of equal size",
    "random": "random choice",
    "largest": "largest modules",
    "last_layers": "last layers",
    "plan": "the plan",
    "full": "full",
}


def print_validation(
    content: dict[str, Any], path: Path, plan: Plan, plan_path: Path,
    *, as_json: bool = False, console: Terminal | None = None,
) -> None:  # fmt: skip
    """Print the verdict, the table, the curves and the next command."""
    if as_json:
        print_json({"path": path, **content})
        return
    console = console or Terminal()
    for place, line in enumerate(content["verdict"]):
        console.print(Text(line, style="" if place else "bold"))
    console.print()
    table = plain_table(
        "arm", "trained", "rank", "alpha", "learning rates", "loss", "95 %", "gap recovered",
        "s in steps",
    )  # fmt: skip
    for name, arm in content["arms"].items():
        share = arm["recovered"]
        loss, low, high = (arm["loss"][key] for key in ("value", "low", "high"))
        known = None not in (loss, low, high)
        recovered = ""
        if share is not None and share["value"] is not None and name not in ("lora", "full"):
            value, least, most = (100 * share[key] for key in ("value", "low", "high"))
            recovered = f"{value:.0f} % [{least:.0f}, {most:.0f}]"
        table.add_row(
            Text(_LABELS[name], style="bold" if name == "plan" else ""),
            short(arm["trained_params"]),
            *("" if name == "full" else str(arm[key]) for key in ("lora_rank", "lora_alpha")),
            ", ".join(
                f"{label} {rate:.3g}"
                for label, rate in zip(
                    ("full", "LoRA"), arm["learning_rates"].values(), strict=True
                )
                if rate is not None
            ),
            f"{loss:.4f}" if known else "diverged",
            f"{low:.4f} to {high:.4f}" if known else "",
            recovered,
            f"{arm['seconds_per_training']:.1f}",
        )
    console.whole(table)
    console.print()
    # Test loss along the training as blocks, above the lowest of all.
    curves = {
        name: [content["untrained_loss"], *arm["curve"]["mean"]]
        for name, arm in content["arms"].items()
        if None not in arm["curve"]["mean"]
    }
    floor = min(map(min, curves.values()), default=0.0)
    table = plain_table("", "", "", "")
    table.show_header = False
    for name, losses in curves.items():
        first, last = f"{losses[0]:.4f}", f"{losses[-1]:.4f}"
        table.add_row(
            _LABELS[name],
            sparkline([loss - floor for loss in losses], ascii_only=console.options.ascii_only),
            f"{first} to {last}" if first != last else f"{first}, no change",
            f"in {count(content['arms'][name]['curve']['steps'][-1], 'step')}",
        )
    console.whole(table)
    console.print()
    if also := content.get("also"):
        console.print(
            f"{count(also['examples'], 'example')} of {visible(also['source'])}: "
            f"{also['untrained_loss']:.4f} nats per token before the training"
        )
        table = plain_table("arm", "after", "forgotten", "by seed")
        for name, arm in also["arms"].items():
            known = arm["loss"] is not None
            table.add_row(
                _LABELS[name],
                f"{arm['loss']:.4f}" if known else "diverged",
                f"{arm['forgotten']:+.4f}" if known else "",
                " ".join("?" if loss is None else f"{loss:.4f}" for loss in arm["seeds"]),
            )
        console.whole(table)
        console.print()
    console.notes(content["notes"])
    console.labelled([("validation", str(path))], width=12)
    made = content["arms"]["plan"]
    given = [
        word
        for name, rate in made["learning_rates"].items()
        if rate is not None
        for word in (f"--{name}-lr", f"{rate:.3g}")
    ]
    steps = count(made["curve"]["steps"][-1], "step")
    commands = [
        (
            command("export", plan_path, "--to", "trl", "-o", "hybrid", *given),
            f"for your trainer, at the rates that did best in {steps}",
        )
    ]
    if scores := scores_beside(plan, plan_path):
        rivals = [name for name in ("matched", "rslora") if name in content["arms"]]
        name = min(rivals, key=lambda name: _loss_or_inf(content["arms"][name]))
        rival = content["arms"][name]
        alpha = None
        if name == "rslora":
            alpha = rival["lora_alpha"] // rival["lora_rank"] * plan.lora.rank
        step = (
            matched_lora(plan, scores, alpha=alpha),
            f"{_LABELS[name].removesuffix(' of equal size')} with as many trained parameters, as a "
            f"plan; {rival['learning_rates']['lora']:.3g} did best",
        )
        ahead = made["better_than"].get(name)
        worse = ahead is not None and ahead["high"] is not None and ahead["high"] < 0
        commands.insert(0 if worse else 1, step)
    console.next_steps(*commands)


def _loss_or_inf(arm: Mapping[str, Any]) -> float:
    """Test loss of an arm; infinite where it diverged."""
    loss: float | None = arm["loss"]["value"]
    return math.inf if loss is None else loss


def print_validation_forecast(validation: Validation, seconds: float, *, as_json: bool) -> None:
    """Print what a validation will take, at so many seconds per training."""
    console, steps = Terminal(), validation.settings.steps
    least, most = validation.trainings
    if as_json:
        print_json({
            "fewest_trainings": least, "most_trainings": most, "steps": steps,
            "seconds_per_training": seconds,
            "arms": [
                picked(arm, "name", "trained_params", "memory_bytes") for arm in validation.arms
            ],
        })  # fmt: skip
        return
    console.print(
        f"{least} to {most} trainings of {steps} steps, about {seconds:.1f} s each with set-up "
        f"and measuring: {duration(least * seconds)} to {duration(most * seconds)}"
    )
    table = plain_table("arm", "trained", "memory")
    for arm in validation.arms:
        table.add_row(_LABELS[arm.name], short(arm.trained_params), memory(arm.memory_bytes))
    console.whole(table)
