"""What `diff` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlscore.agreement.difference import Difference, Group, Move
from hlscore.agreement.facts import Fact
from hlscore.agreement.kendall import RankAgreement
from hlscore.agreement.sides import Side
from hlscore.views.choice import training
from hlscore.views.facts import fact_texts
from hlscore.views.module_table import ModuleTable, folded
from hlscore.views.terminal import print_next, print_notes, print_table, terminal
from hlscore.views.wording import count, measure, visible

_ALWAYS = (
    "budget", "score", "LoRA rank", "in full", "trained parameters", "model", "probes", "examples",
)  # fmt: skip
_NARROWEST_NAME = 12


def print_difference(found: Difference, *, top: int, console: Console | None = None) -> None:
    """Print what two plans decide differently, and whether that is more than noise.

    Args:
        console: Where to print; standard output by default.
    """
    console = console or terminal()
    for name, side in (("A", found.a), ("B", found.b)):
        console.print(Text.assemble((f"{name}  ", "bold"), _source(side)), soft_wrap=True)
    if found.none:
        console.print()
        console.print(Text("no difference", style="bold green"))
        return
    print_notes(console, _notes(found))
    console.print()
    console.print(_facts_table(found.facts))
    if found.moves:
        console.print()
        _moves_table(found, top).print(console)
    console.print()
    for line in _sentences(found):
        console.print(line, soft_wrap=True)
    for heading, groups in (("kind", found.by_kind), ("layer", found.by_layer)):
        shown = [group for group in groups if group.full_a or group.full_b]
        if shown and found.moves:
            console.print()
            _print_groups(console, heading, shown, top)
    _print_next(console, found)


def print_difference_json(found: Difference) -> None:
    """Print the whole difference as one JSON object."""
    plain = {
        "a": _plain_side(found.a),
        "b": _plain_side(found.b),
        "same": found.none,
        "same_structure": found.same_structure,
        "same_weights": found.same_weights,
        "facts": [
            {"name": fact.name, "a": fact.values[0], "b": fact.values[1], "same": fact.same}
            for fact in found.facts
        ],
        "modules": {
            "common": found.common,
            "only_a": found.only_a,
            "only_b": found.only_b,
            "other_shape": found.other_shape,
        },
        "moves": [_plain_move(move) for move in found.moves],
        "full": {
            "shared": found.shared_full,
            "expected_by_chance": found.expected_full,
            "jaccard": found.jaccard_full,
        },
        "decisions": {"jaccard": found.jaccard_decisions},
        "agreement": asdict(found.agreement),
        "by_kind": [asdict(group) for group in found.by_kind],
        "by_layer": [asdict(group) for group in found.by_layer],
    }
    print(json.dumps(plain))


def agreement_text(found: RankAgreement) -> str:
    """Tau with its interval: `0.31, 95 % interval 0.11 to 0.52`."""
    if found.tau is None:
        return "unknown: fewer than two scores, or all the same"
    if found.tau == 1:
        return "1: the same order"
    if found.low is None or found.high is None:
        return f"{found.tau:z.2f}"
    return f"{found.tau:z.2f}, 95 % interval {found.low:z.2f} to {found.high:z.2f}"


def _print_next(console: Console, found: Difference) -> None:
    commands = []
    if found.moves:
        first = found.moves[0]
        path = (found.a if first.b is None else found.b).path
        commands.append(
            (
                f"hlscore show {shlex.quote(str(path))} --module {shlex.quote(first.module)}",
                "all about the first of them",
            )
        )
    if found.a.from_scores and found.b.from_scores:
        files = " ".join(shlex.quote(str(side.path)) for side in (found.a, found.b))
        commands.append((f"hlscore compare {files}", "overlap of the highest scores"))
    if commands:
        print_next(console, *commands)


def _source(side: Side) -> str:
    planned = f" (scores, planned with a budget of {side.plan.budget.asked})"
    return f"{visible(str(side.path))}{planned if side.from_scores else ''}"


def _notes(found: Difference) -> list[str]:
    first, second = found.a.plan, found.b.plan
    notes = []
    if not found.same_structure:
        names = list(dict.fromkeys(plan.model.name for plan in (first, second)))
        called = " and ".join(names) if len(names) == 2 else f"both called {names[0]}"
        shapes = f", {found.other_shape:,} of them of other shapes" if found.other_shape else ""
        notes.append(
            f"these are different models, {called}: {count(found.common, 'module')} of the same "
            f"name are compared{shapes}"
        )
    elif found.same_weights is False:
        notes.append("the models have the same modules, but other weights")
    if first.score.name != second.score.name:
        notes.append(
            f"A is ordered by {first.score.name}, B by {second.score.name}: scores of different "
            "kinds are compared"
        )
    return notes


def _facts_table(facts: Sequence[Fact]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "A", "B"):
        table.add_column(heading, overflow="fold")
    for fact in facts:
        if fact.same and fact.name not in _ALWAYS:
            continue
        first, second = fact_texts(fact)
        if fact.same:
            table.add_row(fact.name, first, "same", style="dim")
        else:
            table.add_row(Text(visible(fact.name)), first, Text(second, style="bold yellow"))
    return table


def _moves_table(found: Difference, top: int) -> ModuleTable:
    names = [side.plan.score.name for side in (found.a, found.b)]
    table = ModuleTable((f"{names[0]} A", f"{names[1]} B"), ("A", "B"))
    for move in found.moves[:top]:
        sides = (move.a, move.b)
        table.add_row(
            " > ".join("-" if side is None else str(side.position) for side in sides),
            visible(move.module),
            *(measure(None if side is None else side.score) for side in sides),
            *("absent" if side is None else training(side) for side in sides),
            style=None if move.crosses_full else "dim",
        )
    table.leave_out(len(found.moves) - top)
    return table


def _sentences(found: Difference) -> list[Text]:
    modules = found.common + found.only_a + found.only_b
    numbers = [len(side.plan.full) for side in (found.a, found.b)]
    chance = "" if found.expected_full is None else f" ({found.expected_full:.2g} by chance)"
    only = [
        f", {number:,} only in {name}"
        for name, number in (("A", found.only_a), ("B", found.only_b))
        if number
    ]
    into = sum(move.crosses_full for move in found.moves)
    scores = dict.fromkeys(side.plan.score.name for side in (found.a, found.b))
    crossing = f", {into:,} of them into or out of full" if found.moves else ""
    lines = [
        (
            "moved",
            f"{len(found.moves):,} of {count(modules, 'module')} trained differently{crossing}"
            f"{''.join(only)}; Jaccard of module, mode and rank {found.jaccard_decisions:.2f}",
        ),
        (
            "full",
            f"{found.shared_full} in full on both sides{chance}, of {numbers[0]} in A and "
            f"{numbers[1]} in B; Jaccard {found.jaccard_full:.2f}",
        ),
        (
            "order",
            f"Kendall's tau of {' and '.join(scores)} {agreement_text(found.agreement)}, over "
            f"{count(found.agreement.n, 'module')}",
        ),
    ]
    if found.agreement.low is not None and found.agreement.tau != 1:
        lines.append(
            ("", "the interval is over modules: it does not tell how noisy their scores are")
        )
    lines += [("noise" if place == 0 else "", line) for place, line in enumerate(_noise(found))]
    return [Text.assemble((f"{label:<7}", "bold"), text) for label, text in lines]


def _noise(found: Difference) -> list[str]:
    taus = {"A": found.a.resampled_tau, "B": found.b.resampled_tau}
    known = {name: tau for name, tau in taus.items() if tau is not None}
    if not known:
        return []
    each = ", ".join(f"{tau:.2f} in {name}" for name, tau in known.items())
    lines = [f"tau between two resamples of the same probes: {each}; new probes agree less"]
    high = found.agreement.high
    if len(known) == 2 and high is not None and found.agreement.tau != 1:
        as_well = high >= min(known.values())
        lines.append(
            "A and B agree no less than that: noise alone can explain the other order"
            if as_well
            else "A and B agree less than that: other probes, or a real change"
        )
    return lines


def _print_groups(console: Console, heading: str, groups: Sequence[Group], top: int) -> None:
    """Print modules in full by kind or layer; of the columns only the names fold."""
    numbers = ("modules", "full A", "full B", "both")
    names = [
        "outside" if group.name is None else visible(str(group.name)) for group in groups[:top]
    ]
    rest = [f"... {len(groups) - top:,} more"] if len(groups) > top else []
    room = console.width - sum(len(name) + 1 for name in numbers)
    longest = max(map(cell_len, (heading, *names, *rest)))
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column(heading, width=min(longest, max(room, _NARROWEST_NAME)))
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in zip(names, groups, strict=False):
        cells = (group.modules, group.full_a, group.full_b, group.full_both)
        lines = folded(name, max(room, _NARROWEST_NAME))
        table.add_row("\n".join(lines), *(f"{number:,}" for number in cells))
    for text in rest:
        table.add_row(text, style="dim")
    print_table(console, table)


def _plain_side(side: Side) -> dict[str, object]:
    return {
        "path": str(side.path),
        "holds": "scores" if side.from_scores else "plan",
        "score": side.plan.score.name,
        "resampled_tau": side.resampled_tau,
    }


def _plain_move(move: Move) -> dict[str, object]:
    names = ("mode", "rank", "position", "score", "selection_probability", "locked", "params",
             "trained_params")  # fmt: skip
    known = move.known
    return {
        "module": move.module,
        "kind": known.kind,
        "block": known.block,
        "layer": known.layer,
    } | {
        side: None if item is None else {name: getattr(item, name) for name in names}
        for side, item in (("a", move.a), ("b", move.b))
    }
