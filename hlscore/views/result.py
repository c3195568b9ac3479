"""What `rank` and `plan` print: results first, then the next commands to run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlscore.artifacts.files import PLAN_FILE, ROLLOUTS_FILE, SCORES_FILE
from hlscore.artifacts.plan import Plan
from hlscore.planning.allocation import Allocation, Decision
from hlscore.records import ProbeSummary, ScoreReport
from hlscore.settings import DEFAULT_RANK
from hlscore.views.heatmap import ASCII, UNICODE, heat_map
from hlscore.views.terminal import terminal
from hlscore.views.wording import count, measure, memory, percent, shape, short


def print_result(
    report: ScoreReport,
    allocation: Allocation,
    paths: Mapping[str, Path],
    *,
    top: int,
    console: Console | None = None,
) -> None:
    """Print what a run found, where it is, and what to do next.

    Args:
        report: Scores.
        allocation: Decisions.
        paths: Where each file is, by its name.
        top: Modules to show in the table.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    console.print(_headline(report), soft_wrap=True)
    _print_choice(console, allocation, top)
    _print_notes(console, (*report.probes.notes, *_run_notes(report), *allocation.notes))
    console.print()
    width = 2 + max(len(Path(name).stem) for name in paths)
    for name, path in paths.items():
        label = f"{Path(name).stem:<{width}}"
        console.print(Text.assemble((label, "bold"), str(path)), soft_wrap=True)
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    commands = [
        (
            f"hlscore plan {quoted[SCORES_FILE]} --budget 0.2 -o plan-20.json",
            "another budget, without the model",
        ),
        (
            f"hlscore export {quoted[PLAN_FILE]} --to trl -o hybrid",
            "for your trainer; hlscore export --list names the others",
        ),
    ]
    if ROLLOUTS_FILE in quoted:
        model = shlex.quote(report.model.model)
        other = "grpo" if report.probes.loss_type == "gspo" else "gspo"
        commands.append(
            (
                f"hlscore rank {model} --objective grpo --rollouts {quoted[ROLLOUTS_FILE]} "
                f"{_other_options(report.run.settings)}--loss-type {other} -o {other}",
                "another loss on the same completions, without sampling again",
            )
        )
    _print_next(console, *commands)


def _other_options(settings: Mapping[str, Any]) -> str:
    """Options of a run that change its scores and that rollouts do not bring with them."""
    probed, plan, data = settings["objective"], settings["plan"], settings["data"]
    given = {
        "--scale-rewards": (probed["scale_rewards"], "group"),
        "--max-new-tokens": (probed["max_new_tokens"], 512),
        "--max-length": (data["max_length"], None),
        "--rank": (plan["rank"], DEFAULT_RANK),
        "--seed": (settings["seed"], 0),
    }
    texts = [f"{name} {value} " for name, (value, default) in given.items() if value != default]
    return "".join([*texts, "--mask-truncated " if probed["mask_truncated"] else ""])


def print_replanned(
    report: ScoreReport,
    allocation: Allocation,
    plan: Path,
    *,
    top: int,
    console: Console | None = None,
) -> None:
    """Print a plan made from stored scores.

    Args:
        report: Scores.
        allocation: Decisions.
        plan: Where the plan file is.
        top: Modules to show in the table.
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    console.print(Text(f"{report.model.model} · {report.model.architecture}", style="bold"))
    _print_choice(console, allocation, top)
    _print_notes(console, allocation.notes)
    console.print()
    console.print(Text.assemble(("plan    ", "bold"), str(plan)), soft_wrap=True)


def print_rank_json(plan: Plan, paths: Mapping[str, Path]) -> None:
    """Print the paths and the plan as one JSON object."""
    keys = {SCORES_FILE: "scores", PLAN_FILE: "plan_file", ROLLOUTS_FILE: "rollouts"}
    print(json.dumps({keys[name]: str(path) for name, path in paths.items()} | _result(plan)))


def print_plan_json(plan: Plan, path: Path) -> None:
    """Print the path and the plan as one JSON object."""
    print(json.dumps({"plan_file": str(path)} | _result(plan)))


def _result(plan: Plan) -> dict[str, object]:
    return {"plan": plan.model_dump(mode="json")}


def _run_notes(report: ScoreReport) -> tuple[str, ...]:
    """Remarks on the run; that the exact estimator fits is what one expects."""
    return tuple(note for note in report.run.notes if not note.startswith("exact:"))


def _headline(report: ScoreReport) -> Text:
    model, probes, run = report.model, report.probes, report.run
    how = f"sketches, k = {run.sketch_size}" if run.sketch_size else "exact gradients"
    return Text.assemble(
        (model.model, "bold"),
        f" · {model.architecture} · {short(model.n_params)} parameters · "
        f"{run.device} {run.dtype}\n",
        f"{_probed(probes)}\n{how} · {run.wall_seconds:.1f} s",
    )


def _probed(probes: ProbeSummary) -> str:
    """What the gradients come from, in a sentence or two."""
    loss = "" if probes.mean_loss is None else f"{probes.mean_loss:.3f} nats"
    tokens = f"{probes.counted_tokens:,} counted tokens"
    if probes.objective == "sft":
        mean = loss and f", mean loss {loss}"
        return f"{count(probes.examples, 'probe example')} from {probes.source}, {tokens}{mean}"
    mean = loss and f", {loss} each"
    name = f"{probes.objective} ({probes.loss_type})"
    drawn = probes.rollouts
    if drawn is None:
        return f"{name}: {count(probes.examples, 'pair')} from {probes.source}, {tokens}{mean}"
    reward = "" if drawn.mean_reward is None else f", mean reward {drawn.mean_reward:.3g}"
    return (
        f"{name}: {count(drawn.completions, 'completion')} of {count(drawn.prompts, 'prompt')} "
        f"from {probes.source}{reward}\n"
        f"{count(drawn.carrying, 'prompt')} with rewards that differ carry the gradient: "
        f"{tokens}{mean}"
    )


def _print_choice(console: Console, allocation: Allocation, top: int) -> None:
    console.print()
    console.print(_table(allocation, top))
    shades = ASCII if console.options.ascii_only else UNICODE
    lines = heat_map(allocation.decisions, width=console.width, shades=shades)
    if lines:
        console.print()
        for line in lines:
            console.print(line)
        rising = f"{' '.join(shades.levels[1:])} rising {allocation.settings.score}"
        legend = f"{shades.levels[0]} no signal  {rising}  {shades.chosen} trained in full"
        console.print(Text(legend, style="dim"))
    console.print()
    for text in summary(allocation):
        console.print(text, soft_wrap=True)


def _table(allocation: Allocation, top: int) -> Table:
    settings = allocation.settings
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("module", overflow="fold")
    table.add_column(settings.score, justify="right", no_wrap=True)
    table.add_column("± se", justify="right", no_wrap=True)
    table.add_column("chosen in", justify="right", no_wrap=True)
    table.add_column("out x in", justify="right", no_wrap=True)
    table.add_column("train", no_wrap=True)
    for item in allocation.decisions[:top]:
        table.add_row(*_cells(item), style=None if item.mode == "full" else "dim")
    left = len(allocation.decisions) - top
    if left > 0:
        table.add_row("", f"... {count(left, 'more module')}", style="dim")
    return table


def _cells(item: Decision) -> tuple[str, ...]:
    row = item.row
    chosen = row.selection_probability
    return (
        str(row.rank),
        row.module,
        measure(item.score),
        measure(item.stderr),
        "-" if chosen is None else f"{100 * chosen:.0f} %",
        shape(row.matrices, row.out_features, row.in_features),
        f"LoRA {item.rank}" if item.mode == "lora" else item.mode,
    )


def summary(allocation: Allocation) -> list[Text]:
    """Say in sentences what a plan trains and how stable it is.

    Args:
        allocation: Decisions with totals.

    Returns:
        One text per sentence.
    """
    totals, rank = allocation.totals, allocation.settings.rank
    module_share = percent(totals.full_modules / totals.candidate_modules)
    parameter_share = percent(totals.full_params / totals.candidate_params)
    lines = [
        Text.assemble(
            ("full    ", "bold"),
            f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} "
            f"({module_share}), {short(totals.full_params)} of "
            f"{short(totals.candidate_params)} candidate parameters ({parameter_share})",
        ),
        Text.assemble(
            ("trained ", "bold"),
            f"{short(totals.trained_params)} parameters in all: "
            f"{totals.trained_params / totals.plain_lora_params:.2f} x plain LoRA of rank {rank}, "
            f"{percent(totals.trained_params / totals.model_params)} of full fine-tuning",
        ),
    ]
    lines.append(Text.assemble(("memory  ", "bold"), _memory(allocation)))
    if allocation.picks.solver == "HiGHS":
        gap = allocation.picks.gap
        lines.append(
            Text.assemble(("solver  ", "bold"), f"HiGHS, at most {gap:.1e} of the best value away")
        )
    if allocation.mean_reselection is not None and allocation.borderline is not None:
        lines.append(
            Text.assemble(
                ("stable  ", "bold"),
                f"{100 * allocation.mean_reselection:.0f} % of the resamples of these probes "
                "choose a chosen module again; new probes agree less",
            )
        )
        lines.append(Text.assemble(("doubt   ", "bold"), _doubt(allocation)))
    return lines


def _memory(allocation: Allocation) -> str:
    use, settings = allocation.memory, allocation.settings.memory
    weights = use.frozen_bytes + use.copy_bytes + use.full_bytes + use.adapter_bytes
    parts = (
        f"weights {memory(weights)}",
        f"gradients {memory(use.gradient_bytes)}",
        f"{settings.optimizer} {memory(use.optimizer_bytes)}",
        f"activations about {memory(use.activation_bytes)}",
    )
    return (
        f"{memory(use.total_bytes)} to train: {', '.join(parts)}\n"
        f"        ({settings.base_bits}-bit base, {settings.master} masters, "
        f"{settings.train_batch} x {settings.train_length} tokens)"
    )


def _doubt(allocation: Allocation) -> str:
    borderline = (
        f"{count(allocation.borderline or 0, 'module')} chosen in more than 10 % and less than "
        "90 % of the resamples"
    )
    if allocation.settings.score != "hls":
        return borderline
    lows = [item.row.hls_ci_low for item in allocation.decisions]
    clear = sum(low is not None and low > 0 for low in lows)
    text = f"{clear:,} of {count(len(lows), 'module')} score above zero with 95 % confidence"
    if clear >= allocation.totals.full_modules:
        return text
    return f"{text}\n        the order is mostly noise: take more probes (--samples)"


def _print_notes(console: Console, notes: tuple[str, ...]) -> None:
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)


def _print_next(console: Console, *commands: tuple[str, str]) -> None:
    console.print()
    console.print(Text("next", style="bold"))
    for command, why in commands:
        console.print(Text.assemble("  ", (f"# {why}", "dim")), soft_wrap=True)
        console.print(Text.assemble("  ", (command, "cyan")), soft_wrap=True)
