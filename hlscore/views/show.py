"""What `show` prints of a plan or a report, and of one module of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.artifacts.report import report_schema
from hlscore.artifacts.selection import Column
from hlscore.errors import ArtifactError
from hlscore.planning.memory import Choice, extra_use
from hlscore.records import ModuleRow, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.scores.rows import interval, standard_error
from hlscore.settings import Filters
from hlscore.views.drawings import print_heat_map, sparkline
from hlscore.views.next_commands import for_trainer, plan_again, scores_beside, with_lock
from hlscore.views.result import print_plan_modules
from hlscore.views.summary import chosen_in, headline, run_notes, training
from hlscore.views.terminal import ModuleLine, Terminal, command, plain_table, print_json
from hlscore.wording import count, measure, memory, percent, short, visible

_ALWAYS_SHOWN = ("rank", "module", "out_features", "in_features", "matrices")
_STATUSES = {"scored": "", "unreached": " (zero gradient)", "skipped": " (--status skipped: why)"}
_LABEL_WIDTH = 9


def print_selected(
    artifact: Plan | ScoreReport,
    modules: Sequence[Any],
    columns: Sequence[Column],
    path: Path,
    filters: Filters,
    top: int,
    *,
    as_json: bool,
) -> None:
    """Print a file and up to `top` of those of its modules that pass the filters, in order.

    Args:
        modules: Of a plan, or rows of a report.
        columns: The one that orders the modules, then those to show beside the usual ones.
    """
    if isinstance(artifact, Plan):
        kind, model, of = "plan", artifact.model.name, len(artifact.modules)
    else:
        kind, model, of = "report", artifact.model.model, len(artifact.rows)
    if as_json:
        print_json({
            "file": path, "artifact": kind, "model": model, "modules": of,
            "matching": len(modules), "sort": columns[0].name,
            "rows": [_plain(item) for item in modules[:top]],
        })  # fmt: skip
        return
    console = Terminal()
    console.print(headline(artifact))
    if not modules:
        none = f"None of its {count(of, 'module')} matches {visible(str(filters))}."
        console.print(Text(f"\n{none if of else 'It holds no modules.'}"))
        return
    if len(modules) < of:
        console.print(Text(f"{len(modules):,} of {count(of, 'module')}", style="yellow"))
    one = command("show", path, "--module", modules[0].module)
    if isinstance(artifact, Plan):
        print_plan_modules(console, artifact, modules, top=top)
        console.notes(artifact.notes)
        console.next_steps((one, "one module, and what it costs"), for_trainer(path))
    else:
        _print_rows(console, artifact, modules, columns, top)
        console.notes(run_notes(artifact))
        misses = "one module, and what LoRA of each rank misses"
        planning = plan_again(artifact, path, "-o", "plan.json")
        console.next_steps((one, misses), (planning, "which to train in full"))


def _print_rows(
    console: Terminal,
    report: ScoreReport,
    rows: Sequence[ModuleRow],
    columns: Sequence[Column],
    top: int,
) -> None:
    """Print up to `top` rows of a report as a table and a map, and how many have which status."""
    score = columns[0].field if columns[0].field in SCORES else ordering_score(report)
    further = {column.field: column.name for column in columns}
    more = [name for name in further if name not in (*_ALWAYS_SHOWN, score)]
    with_chosen, lines = score == report.run.score, []
    for row in rows[:top]:
        cells = (
            measure(row.rank), row.module, measure(getattr(row, score)),
            measure(standard_error(_resamples_of(row, score))),
            *([chosen_in(row.selection_probability)] if with_chosen else []),
            row.size, *(measure(getattr(row, name)) for name in more),
        )  # fmt: skip
        lines.append(ModuleLine(cells, "" if row.status == "scored" else "dim", row.reason))
    chosen = ["chosen in"] if with_chosen else []
    headings = [score, "± se", *chosen, "out x in", *(further[name] for name in more)]
    console.print()
    console.modules(headings, lines, of=len(rows))
    print_heat_map(console, [row for row in rows if row.is_candidate], score)
    console.print()
    found: Counter[str] = Counter(row.status for row in report.rows)
    parts = [f"{found[name]:,} {name}{why}" for name, why in _STATUSES.items() if found[name]]
    console.labelled([("modules", ", ".join(parts))])


def ordering_score(report: ScoreReport) -> str:
    """The score that ordered a report."""
    if report.run.score not in SCORES:
        raise ArtifactError(
            f"The report was ordered by '{report.run.score}', which this hlscore does not know.",
            hint=f"Give --sort with one of: {', '.join(SCORES)}.",
        )
    return report.run.score


def print_module(artifact: Plan | ScoreReport, item: Any, path: Path, *, as_json: bool) -> None:
    """Print one module of a plan, or one row of a report."""
    console = Terminal()
    if not as_json:
        layer = "outside the layers" if item.layer is None else f"layer {item.layer}"
        params = count(item.n_params, "parameter")
        console.print(Text(item.module, style="bold"))
        console.print(Text(f"{layer} · {item.form} {item.size} · {params} · {item.parameter}\n"))
    if isinstance(artifact, Plan):
        _print_plan_module(console, artifact, item, path, as_json=as_json)
    else:
        _print_row(console, artifact, item, path, as_json=as_json)


def _print_plan_module(
    console: Terminal, plan: Plan, item: PlanModule, path: Path, *, as_json: bool
) -> None:
    """How a module is trained, why, and what the alternatives cost."""
    ranks = sorted({plan.lora.rank, *plan.lora.ranks, item.rank or plan.lora.rank})
    adapters = [Choice(row=item, mode="lora", rank=rank) for rank in ranks]
    ways = [Choice(row=item, mode="frozen"), *adapters, Choice(row=item, mode="full")]
    costs = [(way, extra_use(way, plan.settings.memory).total_bytes) for way in ways]
    if as_json:
        plain = [
            {"mode": way.mode, "rank": way.rank or None, "params": way.trained_params, "bytes": n}
            for way, n in costs
        ]
        print_json({"file": path, "artifact": "plan", "module": _plain(item), "costs": plain})
        return
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
    console.labelled(lines.items(), width=_LABEL_WIDTH)
    table = plain_table("cost", "parameters", "memory", "")
    for way, size in costs:
        planned = (way.mode, way.rank) == (item.mode, item.rank or 0)
        cells = (training(way.mode, way.rank), f"{way.trained_params:,}", memory(size))
        table.add_row(*cells, "planned" if planned else "", style="" if planned else "dim")
    console.print()
    console.whole(table)
    commands = [(command("show", path), "the whole plan")]
    if scores := scores_beside(plan, path):
        mode = "lora" if item.mode == "full" else "full"
        again = with_lock(plan, scores, item.module, mode)
        commands.append((again, "another mode for this module"))
    console.next_steps(*commands)


def _print_row(
    console: Terminal, report: ScoreReport, row: ModuleRow, path: Path, *, as_json: bool
) -> None:
    """Sizes of a weight, its scores with errors, and what LoRA of each rank misses."""
    resamples = {name: _resamples_of(row, name) for name in SCORES}
    if as_json:
        print_json({
            "file": path, "artifact": "report", "rank": report.run.rank, "module": _plain(row),
            "intervals": {name: interval(own) for name, own in resamples.items() if own},
        })  # fmt: skip
        return
    chosen, reached = row.selection_probability, row.matrices_reached
    spectrum = {
        "stable rank": row.stable_rank,
        "effective rank": row.effective_rank,
        "rank for 90 %": row.rank_for_90,
        "weight norm": row.weight_norm,
        "condition number": row.condition_number,
    }
    lines = {"status": row.status + (f": {row.reason}" if row.reason else "")}
    if row.rank is not None:
        lines["place"] = f"{row.rank:,} of {len(report.candidates):,} by {report.run.score}"
    if chosen is not None:
        lines["chosen"] = f"in {chosen_in(chosen)} of the resamples"
    if row.matrices > 1 and reached is not None:
        lines["matrices"] = f"{reached:,} of {row.matrices:,} reached by a probe token"
    lines["spectrum"] = " · ".join(
        f"{name} {measure(value)}" for name, value in spectrum.items() if value is not None
    )
    console.labelled(lines.items(), width=_LABEL_WIDTH)
    commands = [(command("show", path, "--kind", row.kind), "its kind in every layer")]
    if row.is_candidate:
        table = plain_table("score", "value", "± se", "95 % interval", "estimator's error", "place")
        for name, score in SCORES.items():
            value, error = getattr(row, name), getattr(row, score.error_column, None)
            low, high = interval(resamples[name])
            others = (getattr(other, name) for other in report.candidates)
            above = sum(x is not None and value is not None and x > value for x in others)
            ends = "-" if low is None else f"{measure(low)} to {measure(high)}"
            place = "-" if value is None else f"{1 + above:,}"
            cells = (measure(value), measure(standard_error(resamples[name])), ends, measure(error))
            style = "bold" if name == report.run.score else None
            table.add_row(name, *cells, place, style=style)
        console.print()
        console.whole(table)
        commands.append((with_lock(report, path, row.module, "full"), "a plan that trains it"))
    if row.curve_ranks:
        console.print()
        _print_curves(console, report.run.rank, row)
    console.next_steps(*commands)


def _print_curves(console: Terminal, run_rank: int, row: ModuleRow) -> None:
    curves = {
        name: [SCORES[name].compute(row, rank) or 0.0 for rank in row.curve_ranks]
        for name in ("tail", "hls")
    }
    console.print(Text("what LoRA of each rank misses", style="bold"))
    for name, values in curves.items():
        drawn = sparkline(values, ascii_only=console.options.ascii_only)
        ends = f"  rank {row.curve_ranks[0]} to {row.curve_ranks[-1]}"
        console.print(Text.assemble((f"{name:<5}", "bold"), (drawn, "cyan"), (ends, "dim")))
    console.print()
    table = plain_table("rank", "tail", "of all", "± error", "hls", "of all", "± error", "")
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    errors = {"tail": row.tail_curve_errors, "hls": row.hls_curve_errors}
    for place, rank in enumerate(row.curve_ranks):
        cells = [str(rank)]
        for name, values in curves.items():
            share = percent(values[place] / values[0]) if values[0] > 0 else "-"
            error = 0.0 if rank >= row.max_rank else errors[name][place]
            cells += [measure(values[place]), share, measure(error)]
        ours = rank == run_rank
        last = "compared against" if ours else ""
        table.add_row(*cells, last, style="bold" if ours else None)
    console.whole(table)


def _plain(item: PlanModule | ModuleRow) -> dict[str, Any]:
    """A module as plain data, without the replicates of its scores."""
    if isinstance(item, PlanModule):
        return item.model_dump(mode="json")
    left_out = {score.replicates_column for score in SCORES.values()}
    return {name: getattr(item, name) for name in report_schema().names if name not in left_out}


def _resamples_of(row: ModuleRow, score: str) -> tuple[float, ...]:
    """Resamples of a row's score; none where the row has no such score."""
    return () if getattr(row, score) is None else SCORES[score].replicates(row)
