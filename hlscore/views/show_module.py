"""What `show --module` prints: everything that a file says of one module."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.revision import cost_of
from hlscore.planning.memory import Mode
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import interval, standard_error
from hlscore.views.choice import chosen_in, training
from hlscore.views.commands import plan_again, replan, scores_beside
from hlscore.views.show import plain, resamples_of
from hlscore.views.sparkline import ASCII, UNICODE, sparkline
from hlscore.views.terminal import print_next, print_table, terminal
from hlscore.views.wording import count, measure, memory, percent, shape, short


def print_plan_module(plan: Plan, item: PlanModule, path: Path) -> None:
    """Print one module of a plan: what is done with it, why, and what that costs."""
    console = terminal()
    _print_identity(console, item, item.params)
    why = ", asked for by a lock" if item.locked else ""
    if plan.method != "score":
        why = f", as the baseline {plan.method} does"
    alpha = "" if item.alpha is None else f", alpha {item.alpha}"
    share = percent(item.trained_params / max(1, plan.totals.trained_params))
    said = {
        "train": f"{training(item)}{alpha}{why}: {short(item.trained_params)} parameters, "
        f"{share} of all that is trained",
        "place": f"{item.position:,} of {plan.totals.candidate_modules:,} by {plan.score.name}, "
        f"which is {measure(item.score)} ({plan.score.unit})",
        "chosen": f"in {chosen_in(item.selection_probability)} of the resamples"
        if item.selection_probability is not None
        else "",
        "remark": item.remark,
    }
    _print_said(console, said)
    console.print()
    print_table(console, _costs(plan, item))
    commands = [(f"hlscore show {shlex.quote(str(path))}", "the whole plan")]
    scores = scores_beside(plan, path)
    if scores:
        lock = f"{item.module}={'lora' if item.mode == 'full' else 'full'}"
        commands.append(
            (
                replan(plan, scores, "--lock", lock, "-o", "plan-locked.json"),
                "decide about this module yourself",
            )
        )
    print_next(console, *commands)


def print_report_module(report: ScoreReport, row: ModuleRow, path: Path) -> None:
    """Print one row of a report: sizes, scores with errors, and what each rank leaves over."""
    console = terminal()
    _print_identity(console, row, row.n_params)
    of = len(report.candidates)
    place = "" if row.rank is None else f"{row.rank:,} of {of:,} by {report.run.score}"
    chosen = row.selection_probability
    said = {
        "status": row.status + (f": {row.reason}" if row.reason else ""),
        "place": place,
        "chosen": "" if chosen is None else f"in {chosen_in(chosen)} of the resamples",
        "matrices": f"{row.matrices_reached:,} of {row.matrices:,} reached by a probe token"
        if row.matrices > 1 and row.matrices_reached is not None
        else "",
        "spectrum": _spectrum(row),
    }
    _print_said(console, said)
    if row.is_candidate:
        console.print()
        print_table(console, _scores(report, row))
    if row.curve_ranks:
        console.print()
        _print_curves(console, report, row)
    file = shlex.quote(str(path))
    commands = [(f"hlscore show {file} --kind {shlex.quote(row.kind)}", "its kind in every layer")]
    if row.is_candidate:
        lock = ("--lock", f"{row.module}=full")
        commands.append(
            (
                plan_again(report, path, *lock, "-o", "plan-locked.json"),
                "a plan that trains it",
            )
        )
    print_next(console, *commands)


def print_plan_module_json(plan: Plan, item: PlanModule, path: Path) -> None:
    """Print one module of a plan as one JSON object."""
    costs = [
        {"mode": mode, "rank": rank or None, "params": params, "bytes": size}
        for mode, rank, params, size in _ways(plan, item)
    ]  # fmt: skip
    found = {"file": str(path), "artifact": "plan", "module": plain(item), "costs": costs}
    print(json.dumps(found))


def print_report_module_json(report: ScoreReport, row: ModuleRow, path: Path) -> None:
    """Print one row of a report as one JSON object."""
    found = {
        "file": str(path),
        "artifact": "report",
        "rank": report.run.rank,
        "module": plain(row),
        "intervals": {
            name: interval(resamples_of(row, name)) for name in SCORES if resamples_of(row, name)
        },
    }
    print(json.dumps(found))


def _print_identity(console: Console, item: PlanModule | ModuleRow, params: int) -> None:
    layer = "outside the layers" if item.layer is None else f"layer {item.layer}"
    size = shape(item.matrices, item.out_features, item.in_features)
    console.print(Text(item.module, style="bold"), soft_wrap=True)
    console.print(
        Text(f"{layer} · {item.form} {size} · {count(params, 'parameter')} · {item.parameter}"),
        soft_wrap=True,
    )


def _print_said(console: Console, said: dict[str, str]) -> None:
    console.print()
    for name, text in said.items():
        if text:
            console.print(Text.assemble((f"{name:<9}", "bold"), text), soft_wrap=True)


def _ways(plan: Plan, item: PlanModule) -> list[tuple[Mode, int, int, int]]:
    """Ways to train a module, each with its LoRA rank, parameters and bytes."""
    ranks = sorted({plan.lora.rank, *plan.lora.ranks, *([item.rank] if item.rank else [])})
    ways: list[tuple[Mode, int]] = [("frozen", 0), *(("lora", rank) for rank in ranks), ("full", 0)]
    return [(mode, rank, *cost_of(plan, item, mode, rank)) for mode, rank in ways]


def _costs(plan: Plan, item: PlanModule) -> Table:
    table = _table("what it costs", "parameters", "memory", "")
    for mode, rank, params, size in _ways(plan, item):
        ours = mode == item.mode and rank == (item.rank or 0)
        table.add_row(
            f"LoRA {rank}" if mode == "lora" else mode,
            f"{params:,}",
            memory(size),
            "planned" if ours else "",
            style=None if ours else "dim",
        )
    return table


def _scores(report: ScoreReport, row: ModuleRow) -> Table:
    table = _table("score", "value", "± se", "95 % interval", "estimator's error", "place")
    for name, score in SCORES.items():
        value, error = getattr(row, name), getattr(row, score.error_column, None)
        resamples = resamples_of(row, name)
        low, high = interval(resamples)
        table.add_row(
            name,
            measure(value),
            measure(standard_error(resamples)),
            "-" if low is None else f"{measure(low)} to {measure(high)}",
            measure(error),
            _place(report, name, value),
            style="bold" if name == report.run.score else None,
        )
    return table


def _place(report: ScoreReport, score: str, value: float | None) -> str:
    if value is None:
        return "-"
    others = (getattr(other, score) for other in report.candidates)
    return f"{1 + sum(other is not None and other > value for other in others):,}"


def _spectrum(row: ModuleRow) -> str:
    parts = {
        "stable rank": measure(row.stable_rank),
        "effective rank": measure(row.effective_rank),
        "rank for 90 %": "-" if row.rank_for_90 is None else str(row.rank_for_90),
        "weight norm": measure(row.weight_norm),
        "condition number": measure(row.condition_number),
    }
    return " · ".join(f"{name} {value}" for name, value in parts.items() if value != "-")


def _print_curves(console: Console, report: ScoreReport, row: ModuleRow) -> None:
    levels = ASCII if console.options.ascii_only else UNICODE
    curves = {name: _curve(row, name) for name in ("tail", "hls")}
    first, last = row.curve_ranks[0], row.curve_ranks[-1]
    console.print(Text("what LoRA of each rank leaves over", style="bold"), soft_wrap=True)
    for name, values in curves.items():
        drawn, ends = sparkline(values, levels=levels), f"  rank {first} to {last}"
        line = Text.assemble((f"{name:<5}", "bold"), (drawn, "cyan"), (ends, "dim"))
        console.print(line, soft_wrap=True)
    console.print()
    table = _table("rank", "tail", "of all", "± error", "hls", "of all", "± error", "")
    table.columns[0].justify = "right"
    errors = {"tail": row.tail_curve_errors, "hls": row.hls_curve_errors}
    for place, rank in enumerate(row.curve_ranks):
        cells = [str(rank)]
        for name, values in curves.items():
            spanned = rank >= row.max_rank
            cells += [
                measure(values[place]),
                percent(values[place] / values[0]) if values[0] > 0 else "-",
                measure(0.0 if spanned else errors[name][place]),
            ]
        ours = rank == report.run.rank
        cells.append("compared against" if ours else "")
        table.add_row(*cells, style="bold" if ours else None)
    print_table(console, table)


def _curve(row: ModuleRow, score: str) -> list[float]:
    return [SCORES[score].compute(row, rank) or 0.0 for rank in row.curve_ranks]


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    return table
