"""What `compare` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from hlscore.agreement.comparison import Comparison, Pair
from hlscore.agreement.facts import Fact
from hlscore.views.facts import fact_texts
from hlscore.views.terminal import Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, shortened, visible

_LONGEST_LABEL = 30
_LONGEST_HEADING = 9
_RESAMPLES = "resamples"
# Other facts follow from these, or tell a reader little.
_FOLLOWS = {"probe hash", "counted tokens", "mean loss", "mean reward"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison with what it was made from.

    Attributes:
        facts: What is known of the runs, one value per file.
        missing: Scores of a single file that have no values.
        structures: Hash of names and shapes of each run's model.
        chosen: Whether one score was asked for, whatever the runs were ordered by.
    """

    comparison: Comparison
    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    facts: tuple[Fact, ...]
    missing: tuple[str, ...]
    structures: tuple[str, ...]
    within_kinds: bool
    chosen: bool


def print_comparison(compared: Compared, *, as_json: bool) -> None:
    """Print how well rankings agree, each with each."""
    if as_json:
        _print_json(compared)
        return
    console, found = Terminal(), compared.comparison
    console.print(_headline(compared))
    console.notes(_notes(compared))
    if len(compared.paths) > 1:
        table = plain_table("", "run", "what differs", texts=("run", "what differs"))
        table.columns[-1].ratio = 1
        follows = _FOLLOWS | ({"score"} if compared.chosen else set())
        facts = [fact for fact in compared.facts if not fact.same and fact.name not in follows]
        for place, label in enumerate(compared.labels):
            differing = [f"{visible(fact.name)} {fact_texts(fact)[place]}" for fact in facts]
            text = " · ".join(differing) or "nothing that is known"
            table.add_row(str(place + 1), visible(label), text)
        console.print()
        console.folded(table)
    _print_matrix(console, found, "Kendall's tau", lambda pair: pair.tau.tau, found.resampled)
    overlap = f"share of the highest {count(found.top, 'module')} that both have"
    by_chance = f"({found.top / found.modules:.2f} by chance)"
    _print_matrix(console, found, f"{overlap} {by_chance}", lambda pair: pair.overlap)
    if compared.within_kinds:
        heading = "mean tau within kinds of modules"
        _print_matrix(console, found, heading, lambda pair: pair.within_kinds)
    console.print()
    for line in _remarks(compared):
        console.dim(line)
    if len(compared.paths) == 2:
        difference = command("diff", *compared.paths)
        console.next_steps((difference, "which modules the two plans train differently"))


def _print_json(compared: Compared) -> None:
    found = compared.comparison

    def matrix(value: Callable[[Pair], object]) -> list[list[object]]:
        return [[value(pair) for pair in row] for row in found.pairs]

    files = zip(compared.paths, compared.labels, strict=True)
    print_json({
        "files": [{"path": path, "label": label} for path, label in files],
        "facts": [picked(fact, "name", "values", "same") for fact in compared.facts],
        "same_structure": len(set(compared.structures)) == 1,
        "rankings": [
            picked(item, "label", "score", "rank") | {"resampled_tau": tau}
            for item, tau in zip(found.rankings, found.resampled, strict=True)
        ],
        "without_values": compared.missing,
        "modules": found.modules,
        "agreement": matrix(lambda pair: pair.tau),
        "top": {
            "modules": found.top,
            "by_chance": found.top / found.modules,
            "overlap": matrix(lambda pair: pair.overlap),
            "jaccard": matrix(lambda pair: pair.jaccard),
        },
        "within_kinds": matrix(lambda pair: pair.within_kinds) if compared.within_kinds else None,
    })  # fmt: skip


def _headline(compared: Compared) -> Text:
    found, values = compared.comparison, {fact.name: fact.values for fact in compared.facts}
    names = dict.fromkeys(visible(str(name)) for name in values["model"])
    scores = {item.score for item in found.rankings}
    ranks = {item.rank for item in found.rankings}
    what = found.rankings[0].score if len(scores) == 1 else count(len(scores), "score")
    many = "" if len(compared.paths) == 1 else f" of {count(len(compared.paths), 'run')}"
    at = f"LoRA rank {min(ranks)}" if len(ranks) == 1 else f"{len(ranks)} LoRA ranks"
    return Text.assemble(
        (", ".join(names), "bold"), f" · {what}{many} at {at} · {count(found.modules, 'module')}"
    )


def _notes(compared: Compared) -> Iterator[str]:
    found, several = compared.comparison, len(compared.paths) > 1
    if len(set(compared.structures)) > 1:
        yield (
            "the runs are of different models: the "
            f"{count(found.modules, 'module')} of the same name are compared"
        )
    if several and len({item.score for item in found.rankings}) > 1:
        yield "the runs are ordered by different scores; --score NAME compares one"
    if several and len({item.rank for item in found.rankings}) > 1:
        yield "the scores are for different LoRA ranks; --rank N compares one"
    if found.constant:
        verb = "gives" if len(found.constant) == 1 else "give"
        yield f"{', '.join(found.constant)} {verb} every module the same value: no order"
    if compared.missing:
        yield f"without values: {', '.join(compared.missing)}"


def _print_matrix(
    console: Terminal,
    found: Comparison,
    heading: str,
    value: Callable[[Pair], float | None],
    resampled: Sequence[float | None] = (),
) -> None:
    """A table of pairs; in parts below each other where it is wider than the console."""
    longest = min(_LONGEST_LABEL, max(_LONGEST_HEADING, console.width // 3))
    labels = [shortened(visible(item.label), longest) for item in found.rankings]
    numbered = max(map(cell_len, labels)) > _LONGEST_HEADING
    names = [f"{at} {label}" if numbered else label for at, label in enumerate(labels, start=1)]
    headings = [str(at) if numbered else label for at, label in enumerate(labels, start=1)]
    last = [_RESAMPLES] if any(tau is not None for tau in resampled) else []
    room = console.width - max(map(cell_len, names)) - sum(len(name) + 1 for name in last)
    fitting = max(1, room // (max(5, *map(cell_len, headings)) + 1))
    console.print()
    console.print(Text(heading, style="bold"))
    for start in range(0, len(names), fitting):
        part = range(start, min(start + fitting, len(names)))
        table = plain_table("", *(f"{headings[at]:>5}" for at in part), *last)
        for at, name in enumerate(names):
            cells = ["-" if at == to else _number(value(found.pairs[at][to])) for to in part]
            table.add_row(name, *cells, *([_number(resampled[at])] if last else []))
        console.whole(table)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:z.2f}"


def _remarks(compared: Compared) -> Iterator[str]:
    found = compared.comparison
    if any(tau is not None for tau in found.resampled):
        yield (
            f"{_RESAMPLES}: tau between two resamples of the same probes; two runs that agree as "
            "well differ by noise alone, and new probes agree less"
        )
    if not compared.within_kinds:
        yield (
            "kind and size of a module explain much of such agreement: --within-kinds compares "
            "within kinds"
        )
    widths = [
        pair.tau.high - pair.tau.low
        for at, row in enumerate(found.pairs)
        for pair in row[at + 1 :]
        if pair.tau.low is not None and pair.tau.high is not None
    ]
    if widths and max(widths) > 0:
        yield (
            f"over modules, a tau is known to ± {max(widths) / 2:.2f} or better (95 %); --json "
            "has each interval"
        )
