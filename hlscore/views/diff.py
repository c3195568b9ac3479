"""What `diff` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from hlscore.agreement.difference import Difference
from hlscore.views.compare import fact_label, fact_texts
from hlscore.views.summary import training
from hlscore.views.terminal import ModuleLine, Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, measure, visible

_ALWAYS = (
    "budget", "score", "LoRA rank", "in full", "trained parameters", "model", "probes", "examples",
)  # fmt: skip


def print_difference(found: Difference, *, top: int, as_json: bool) -> None:
    """Print what two plans decide differently, and whether that is more than noise."""
    if as_json:
        _print_json(found)
        return
    console = Terminal()
    for name, side, plan in zip("AB", found.sides, found.plans, strict=True):
        planned = f" (scores, planned with a budget of {plan.budget.asked})"
        console.labelled(
            [(name, f"{visible(str(side.path))}{planned if side.from_scores else ''}")], width=3
        )
    if found.same:
        console.print()
        console.print(Text("no difference", style="bold green"))
        return
    console.notes(_notes(found))
    console.print()
    table = plain_table("", "A", "B", texts=("A", "B"))
    for name, values in found.facts.items():
        first, second = fact_texts(name, values)
        if len(set(values)) > 1:
            table.add_row(fact_label(name), first, Text(second, style="bold yellow"))
        elif name in _ALWAYS:
            table.add_row(name, first, "same", style="dim")
    console.folded(table)

    lines = []
    for move in found.moves[:top]:
        sides = (move.a, move.b)
        cells = (
            " > ".join("-" if side is None else str(side.position) for side in sides),
            visible(move.module),
            *(measure(None if side is None else side.score) for side in sides),
            *("absent" if side is None else training(side.mode, side.rank) for side in sides),
        )
        lines.append(ModuleLine(cells, "" if move.crosses_full else "dim"))
    if lines:
        first, second = (plan.score.name for plan in found.plans)
        headings = (f"{first} A", f"{second} B", "A", "B")
        console.print()
        console.modules(headings, lines, of=len(found.moves), texts=2)
    console.print()
    console.labelled(_sentences(found), width=7)

    for heading, groups in (("kind", found.by_kind), ("layer", found.by_layer)):
        shown = [group for group in groups if group.full_a or group.full_b]
        if not shown or not found.moves:
            continue
        table = plain_table(heading, "modules", "full A", "full B", "both")
        for group in shown[:top]:
            name = "outside" if group.name is None else visible(str(group.name))
            numbers = (group.modules, group.full_a, group.full_b, group.full_both)
            table.add_row(name, *(f"{number:,}" for number in numbers))
        if len(shown) > top:
            table.add_row(f"... {len(shown) - top:,} more", style="dim")
        console.print()
        console.folded(table)

    commands = []
    if found.moves:
        first_move = found.moves[0]
        path = found.sides[0 if first_move.b is None else 1].path
        commands.append((command("show", path, "--module", first_move.module), "the first of them"))
    if all(side.from_scores for side in found.sides):
        both = command("compare", *(side.path for side in found.sides))
        commands.append((both, "overlap of the highest scores"))
    if commands:
        console.next_steps(*commands)


def _print_json(found: Difference) -> None:
    names = ("mode", "rank", "position", "score", "selection_probability", "locked", "params",
             "trained_params")  # fmt: skip
    sides = zip("ab", found.sides, found.plans, found.resampled, strict=True)
    print_json({
        **{
            name: {
                "path": side.path,
                "holds": "scores" if side.from_scores else "plan",
                "score": plan.score.name,
                "resampled_tau": tau,
            }
            for name, side, plan, tau in sides
        },
        **picked(found, "same", "same_structure", "same_weights"),
        "facts": [
            {"name": name, "a": a, "b": b, "same": a == b}
            for name, (a, b) in found.facts.items()
        ],
        "modules": picked(found, "common", "only_a", "only_b", "other_shape"),
        "moves": [
            {"module": move.module}
            | picked(move.items[0], "kind", "block", "layer")
            | {
                side: item and picked(item, *names)
                for side, item in (("a", move.a), ("b", move.b))
            }
            for move in found.moves
        ],
        "full": {
            "shared": found.shared_full,
            "expected_by_chance": found.expected_full,
            "jaccard": found.jaccard_full,
        },
        "decisions": {"jaccard": found.jaccard_decisions},
        **picked(found, "agreement", "by_kind", "by_layer"),
    })  # fmt: skip


def _notes(found: Difference) -> Iterator[str]:
    first, second = found.plans
    if not found.same_structure:
        names = list(dict.fromkeys(plan.model.name for plan in found.plans))
        called = " and ".join(names) if len(names) == 2 else f"both called {names[0]}"
        shapes = f", {found.other_shape:,} of them of other shapes" if found.other_shape else ""
        yield (
            f"these are different models, {called}: {count(found.common, 'module')} of the same "
            f"name are compared{shapes}"
        )
    elif not found.same_weights:
        yield "the models have the same modules, but other weights"
    if first.score.name != second.score.name:
        yield (
            f"A is ordered by {first.score.name}, B by {second.score.name}: scores of different "
            "kinds are compared"
        )


def _sentences(found: Difference) -> Iterator[tuple[str, str]]:
    modules = found.common + found.only_a + found.only_b
    full_a, full_b = (len(plan.full) for plan in found.plans)
    chance = "" if found.expected_full is None else f" ({found.expected_full:.2g} by chance)"
    only = "".join(
        f", {number:,} only in {name}"
        for name, number in (("A", found.only_a), ("B", found.only_b))
        if number
    )
    into = sum(move.crosses_full for move in found.moves)
    crossing = f", {into:,} of them into or out of full" if found.moves else ""
    yield (
        "moved",
        f"{len(found.moves):,} of {count(modules, 'module')} trained differently{crossing}{only}; "
        f"Jaccard of module, mode and rank {found.jaccard_decisions:.2f}",
    )
    yield (
        "full",
        f"{found.shared_full} in full on both sides{chance}, of {full_a} in A and {full_b} in B; "
        f"Jaccard {found.jaccard_full:.2f}",
    )
    order, noise = found.agreement, ""
    known = [
        (name, tau) for name, tau in zip("AB", found.resampled, strict=True) if tau is not None
    ]
    if known:
        each = ", ".join(f"{tau:.2f} in {name}" for name, tau in known)
        noise = f"tau between two resamples of the same probes: {each}; new probes agree less"
    if order.tau is None:
        tau = "unknown: fewer than two scores, or all the same"
    elif order.tau == 1:
        tau = "1: the same order"
    else:
        tau = f"{order.tau:z.2f}"
    over = f"over {count(order.n, 'module')}"
    if order.low is not None and order.high is not None and order.tau != 1:
        tau += f", 95 % interval {order.low:z.2f} to {order.high:z.2f}"
        over += "\nthe interval is over modules and does not contain the noise of their scores"
        if len(known) == 2:
            noise += (
                "\nA and B agree no less than that: noise alone can explain the other order"
                if order.high >= min(tau for _, tau in known)
                else "\nA and B agree less than that: other probes, or a real change"
            )
    scores = " and ".join(dict.fromkeys(plan.score.name for plan in found.plans))
    yield "order", f"Kendall's tau of {scores} {tau}, {over}"
    yield "noise", noise
