"""What `compare` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from hlscore.agreement.comparison import Comparison, Pair
from hlscore.agreement.sides import Value
from hlscore.settings import RankSettings, Setting, parts_of, settings_in
from hlscore.views.terminal import Terminal, command, picked, plain_table, print_json
from hlscore.wording import count, measure, memory, percent, short, shortened, visible

_LONGEST_LABEL = 30
_LONGEST_HEADING = 9
_LONGEST_FACT = 24
_RESAMPLES = "resamples"
_FORMATS: dict[str, Callable[[float], str]] = {
    "parameters in full": short,
    "trained parameters": short,
    "training memory": memory,
    "chosen again": percent,
    "counted tokens": "{:,}".format,
}
# Other facts follow from these, or tell a reader little.
_FOLLOWS = {"probe hash", "counted tokens", "mean loss", "mean reward"}


def print_comparison(found: Comparison, *, as_json: bool) -> None:
    """Print how well rankings agree, each with each."""
    if as_json:
        _print_json(found)
        return
    console = Terminal()
    models = ", ".join(dict.fromkeys(visible(str(name)) for name in found.facts["model"]))
    scores = {item.score for item in found.rankings}
    ranks = {item.rank for item in found.rankings}
    what = found.rankings[0].score if len(scores) == 1 else count(len(scores), "score")
    many = "" if len(found.sides) == 1 else f" of {count(len(found.sides), 'run')}"
    at = f"LoRA rank {min(ranks)}" if len(ranks) == 1 else f"{len(ranks)} LoRA ranks"
    text = f" · {what}{many} at {at} · {count(found.modules, 'module')}"
    console.print(Text.assemble((models, "bold"), text))
    console.notes(_notes(found))

    if len(found.sides) > 1:
        table = plain_table("", "run", "what differs", texts=("run", "what differs"))
        table.columns[-1].ratio = 1
        follows = _FOLLOWS | ({"score"} if found.chosen else set())
        facts = [
            (fact_label(name), fact_texts(name, values))
            for name, values in found.facts.items()
            if len(set(values)) > 1 and name not in follows
        ]
        for place, side in enumerate(found.sides):
            text = " · ".join(f"{label} {texts[place]}" for label, texts in facts)
            table.add_row(str(place + 1), visible(side.label), text or "nothing that is known")
        console.print()
        console.folded(table)
    resampled = [item.resampled_tau for item in found.rankings]
    _print_matrix(console, found, "Kendall's tau", lambda pair: pair.tau.tau, resampled)
    overlap = f"share of the highest {count(found.top, 'module')} that both have"
    by_chance = f"({found.top / found.modules:.2f} by chance)"
    _print_matrix(console, found, f"{overlap} {by_chance}", lambda pair: pair.overlap)
    if found.within_kinds:
        heading = "mean tau within kinds of modules"
        _print_matrix(console, found, heading, lambda pair: pair.within_kinds)

    console.print()
    if any(tau is not None for tau in resampled):
        console.dim(
            f"{_RESAMPLES}: tau between two resamples of the same probes; two runs that agree as "
            "well differ by noise alone, and new probes agree less"
        )
    if not found.within_kinds:
        console.dim(
            "kind and size of a module explain much of such agreement: --within-kinds compares "
            "within kinds"
        )
    widths = [
        pair.tau.high - pair.tau.low
        for at, row in enumerate(found.pairs)
        for pair in row[at + 1 :]
        if pair.tau.low is not None and pair.tau.high is not None
    ]
    if max(widths, default=0) > 0:
        console.dim(
            f"over modules, a tau is known to ± {max(widths) / 2:.2f} or better (95 %); --json "
            "has each interval"
        )
    if len(found.sides) == 2:
        difference = command("diff", *(side.path for side in found.sides))
        console.next_steps((difference, "which modules their plans train differently"))


def _print_json(found: Comparison) -> None:
    def matrix(value: Callable[[Pair], object]) -> list[list[object]]:
        return [[value(pair) for pair in row] for row in found.pairs]

    print_json({
        "files": [picked(side, "path", "label") for side in found.sides],
        "facts": [
            {"name": name, "values": values, "same": len(set(values)) == 1}
            for name, values in found.facts.items()
        ],
        "same_structure": found.same_structure,
        "rankings": [
            picked(item, "label", "score", "rank", "resampled_tau") for item in found.rankings
        ],
        "without_values": found.missing,
        "modules": found.modules,
        "agreement": matrix(lambda pair: pair.tau),
        "top": {
            "modules": found.top,
            "by_chance": found.top / found.modules,
            "overlap": matrix(lambda pair: pair.overlap),
            "jaccard": matrix(lambda pair: pair.jaccard),
        },
        "within_kinds": matrix(lambda pair: pair.within_kinds) if found.within_kinds else None,
    })  # fmt: skip


def _notes(found: Comparison) -> Iterator[str]:
    several = len(found.sides) > 1
    if not found.same_structure:
        yield (
            "the runs are of different models: the "
            f"{count(found.modules, 'module')} of the same name are compared"
        )
    if several and len({item.score for item in found.rankings}) > 1:
        yield "the runs are ordered by different scores; --score NAME compares one"
    if several and len({item.rank for item in found.rankings}) > 1:
        yield "the scores are for different LoRA ranks; --rank N compares one"
    if constant := [item.label for item in found.rankings if item.constant]:
        verb = "gives" if len(constant) == 1 else "give"
        yield f"{', '.join(constant)} {verb} every module the same value: no order"
    if found.missing:
        yield f"without values: {', '.join(found.missing)}"


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
            values = [value(found.pairs[at][to]) for to in part]
            values += [resampled[at]] if last else []
            cells = ["?" if each is None else f"{each:z.2f}" for each in values]
            if at in part:
                cells[at - start] = "-"
            table.add_row(name, *cells)
        console.whole(table)


def fact_label(name: str) -> str:
    """What a fact is called; a setting has the name of its option."""
    group, _, field = name.rpartition(".")
    part = parts_of(RankSettings).get(group or field)
    if group and isinstance(part, type):
        part = settings_in(part).get(field)
    return part.flag if isinstance(part, Setting) and name != "seed" else visible(name)


def fact_texts(name: str, values: Sequence[Value]) -> list[str]:
    """A text per side; whole values where short ones would look the same and are not."""
    form = _FORMATS.get(name, measure)
    texts = [
        shortened(visible(value), _LONGEST_FACT) if isinstance(value, str)
        else "-" if value is None else form(value)
        for value in values
    ]  # fmt: skip
    if len(set(texts)) == len(set(values)):
        return texts
    unit = " bytes" if form is memory else ""
    return [
        "-" if value is None
        else visible(str(value)) if form is measure
        else f"{value:,}{unit}"
        for value in values
    ]  # fmt: skip
