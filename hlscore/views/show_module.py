"""What `show --module` prints: everything that a file says of one module."""

from __future__ import annotations

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.planning.memory import Choice, Mode, extra_use
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import interval, standard_error
from hlscore.views.commands import plan_command, scores_beside
from hlscore.views.drawings import sparkline
from hlscore.views.show import Shown, plain, resamples_of
from hlscore.views.summary import chosen_in, shape, training
from hlscore.views.terminal import Terminal, command, plain_table, print_json
from hlscore.wording import count, measure, memory, percent, short

_LABEL_WIDTH = 9


def print_plan_module(plan: Plan, item: PlanModule, shown: Shown) -> None:
    """Print one module of a plan: how it is trained, why, and what the alternatives cost."""
    path = shown.path
    if shown.as_json:
        costs = [
            {"mode": mode, "rank": rank or None, "params": params, "bytes": size}
            for mode, rank, params, size in _costs(plan, item)
        ]
        print_json({"file": path, "artifact": "plan", "module": plain(item), "costs": costs})
        return
    console = Terminal()
    _print_identity(console, item, item.params)
    why = ", set by a lock" if item.locked else ""
    if plan.method != "score":
        why = f", by the baseline {plan.method}"
    alpha = "" if item.alpha is None else f", alpha {item.alpha}"
    share = percent(item.trained_params / max(1, plan.totals.trained_params))
    chosen = item.selection_probability
    lines = {
        "train": f"{training(item.mode, item.rank)}{alpha}{why}: {short(item.trained_params)} "
        f"parameters, {share} of all trained parameters",
        "place": f"{item.position:,} of {plan.totals.candidate_modules:,} by {plan.score.name}, "
        f"which is {measure(item.score)} ({plan.score.unit})",
        "chosen": "" if chosen is None else f"in {chosen_in(chosen)} of the resamples",
        "remark": item.remark,
    }
    console.labelled(lines, width=_LABEL_WIDTH)
    table = plain_table("cost", "parameters", "memory", "")
    for mode, rank, params, size in _costs(plan, item):
        planned = mode == item.mode and rank == (item.rank or 0)
        cells = (training(mode, rank), f"{params:,}", memory(size))
        table.add_row(*cells, "planned" if planned else "", style="" if planned else "dim")
    console.print()
    console.whole(table)
    commands = [(command("show", path), "the whole plan")]
    scores = scores_beside(plan, path)
    if scores:
        lock = f"{item.module}={'lora' if item.mode == 'full' else 'full'}"
        again = plan_command(plan, scores, "--lock", lock, "-o", "plan-locked.json")
        commands.append((again, "decide about this module yourself"))
    console.next_steps(*commands)


def print_report_module(report: ScoreReport, row: ModuleRow, shown: Shown) -> None:
    """Print one row of a report: sizes, scores with errors, and what each rank misses."""
    path = shown.path
    if shown.as_json:
        resamples = {name: resamples_of(row, name) for name in SCORES}
        print_json({
            "file": path,
            "artifact": "report",
            "rank": report.run.rank,
            "module": plain(row),
            "intervals": {name: interval(own) for name, own in resamples.items() if own},
        })  # fmt: skip
        return
    console = Terminal()
    _print_identity(console, row, row.n_params)
    chosen, reached = row.selection_probability, row.matrices_reached
    spectrum = {
        "stable rank": measure(row.stable_rank),
        "effective rank": measure(row.effective_rank),
        "rank for 90 %": measure(row.rank_for_90),
        "weight norm": measure(row.weight_norm),
        "condition number": measure(row.condition_number),
    }
    lines = {"status": row.status + (f": {row.reason}" if row.reason else "")}
    if row.rank is not None:
        lines["place"] = f"{row.rank:,} of {len(report.candidates):,} by {report.run.score}"
    if chosen is not None:
        lines["chosen"] = f"in {chosen_in(chosen)} of the resamples"
    if row.matrices > 1 and reached is not None:
        lines["matrices"] = f"{reached:,} of {row.matrices:,} reached by a probe token"
    lines["spectrum"] = " · ".join(f"{name} {x}" for name, x in spectrum.items() if x != "-")
    console.labelled(lines, width=_LABEL_WIDTH)
    if row.is_candidate:
        console.print()
        _print_scores(console, report, row)
    if row.curve_ranks:
        console.print()
        _print_curves(console, report, row)
    commands = [(command("show", path, "--kind", row.kind), "its kind in every layer")]
    if row.is_candidate:
        lock = ("--lock", f"{row.module}=full")
        again = plan_command(report, path, *lock, "-o", "plan-locked.json")
        commands.append((again, "a plan that trains it"))
    console.next_steps(*commands)


def _print_identity(console: Terminal, item: PlanModule | ModuleRow, params: int) -> None:
    layer = "outside the layers" if item.layer is None else f"layer {item.layer}"
    console.print(Text(item.module, style="bold"))
    console.print(
        Text(
            f"{layer} · {item.form} {shape(item)} · {count(params, 'parameter')} · {item.parameter}"
        )
    )
    console.print()


def _costs(plan: Plan, item: PlanModule) -> list[tuple[Mode, int, int, int]]:
    """Ways to train a module, each with its LoRA rank, parameters and bytes."""
    ranks = sorted({plan.lora.rank, *plan.lora.ranks, *([item.rank] if item.rank else [])})
    adapters = [Choice(row=item, mode="lora", rank=rank) for rank in ranks]
    ways = [Choice(row=item, mode="frozen"), *adapters, Choice(row=item, mode="full")]
    memory = plan.settings.memory
    return [
        (way.mode, way.rank, way.trained_params, extra_use(way, memory).total_bytes) for way in ways
    ]


def _print_scores(console: Terminal, report: ScoreReport, row: ModuleRow) -> None:
    table = plain_table("score", "value", "± se", "95 % interval", "estimator's error", "place")
    for name, score in SCORES.items():
        value, error = getattr(row, name), getattr(row, score.error_column, None)
        resamples = resamples_of(row, name)
        low, high = interval(resamples)
        others = (getattr(other, name) for other in report.candidates)
        above = sum(x is not None and value is not None and x > value for x in others)
        table.add_row(
            name,
            measure(value),
            measure(standard_error(resamples)),
            "-" if low is None else f"{measure(low)} to {measure(high)}",
            measure(error),
            "-" if value is None else f"{1 + above:,}",
            style="bold" if name == report.run.score else None,
        )
    console.whole(table)


def _print_curves(console: Terminal, report: ScoreReport, row: ModuleRow) -> None:
    curves = {
        name: [SCORES[name].compute(row, rank) or 0.0 for rank in row.curve_ranks]
        for name in ("tail", "hls")
    }
    first, last = row.curve_ranks[0], row.curve_ranks[-1]
    console.print(Text("what LoRA of each rank misses", style="bold"))
    for name, values in curves.items():
        drawn = sparkline(values, ascii_only=console.options.ascii_only)
        ends = f"  rank {first} to {last}"
        line = Text.assemble((f"{name:<5}", "bold"), (drawn, "cyan"), (ends, "dim"))
        console.print(line)
    console.print()
    table = plain_table("rank", "tail", "of all", "± error", "hls", "of all", "± error", "")
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    errors = {"tail": row.tail_curve_errors, "hls": row.hls_curve_errors}
    for place, rank in enumerate(row.curve_ranks):
        cells = [str(rank)]
        for name, values in curves.items():
            cells += [
                measure(values[place]),
                percent(values[place] / values[0]) if values[0] > 0 else "-",
                measure(0.0 if rank >= row.max_rank else errors[name][place]),
            ]
        ours = rank == report.run.rank
        cells.append("compared against" if ours else "")
        table.add_row(*cells, style="bold" if ours else None)
    console.whole(table)
