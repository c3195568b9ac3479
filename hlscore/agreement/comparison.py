"""How well orders of the same modules agree, each with each: scores, LoRA ranks or runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hlscore.agreement.measures import RankAgreement, Values, kendall, resampled_tau, top_overlap
from hlscore.agreement.sides import Facts, Side, Value, facts_of, named, side_by_side
from hlscore.artifacts.plan import Plan
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.budget import share_of
from hlscore.records import ScoreReport
from hlscore.scores.registry import SCORES, find_score, replicates_at, score_of
from hlscore.settings import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Modules ordered by one score of a run, at one LoRA rank."""

    label: str  # what sets it apart from those that it is compared with
    score: str
    rank: int
    resampled_tau: float | None  # between two resamples; `None` where there are none
    constant: bool  # whether all modules have the same value


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """How well two rankings agree."""

    tau: RankAgreement  # with its uncertainty over modules
    # Share of the highest modules that both have; `None` where a side has no order.
    overlap: float | None
    # Mean tau within kinds of modules, weighted by their modules; `None` where no kind has an
    # order, or where it was not asked for.
    within_kinds: float | None

    @property
    def jaccard(self) -> float | None:
        """Jaccard index of the two sets of highest modules, which are of one size."""
        return None if self.overlap is None else self.overlap / (2 - self.overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rankings compared with each other, over the modules that all of them have."""

    sides: tuple[Side, ...]  # the files that they come from: one for all, or one for each
    facts: Facts
    rankings: tuple[Ranking, ...]
    missing: tuple[str, ...]  # scores of a single file that have no values
    modules: int  # how many modules all have
    top: int  # how many of them count as the highest
    # By row and column, both in the order of the rankings; the matrix is symmetric.
    pairs: tuple[tuple[Pair, ...], ...]
    within_kinds: bool
    chosen: bool  # whether one score was asked for, whatever the runs were ordered by

    @property
    def same_structure(self) -> bool:
        """Whether all runs are of models with the same modules of the same shapes."""
        return len({side.content.model.fingerprint.structure for side in self.sides}) == 1


def compare(
    sides: Sequence[Side],
    *,
    score: str | None,
    rank: int | None,
    ranks: Sequence[int],
    top: Limit,
    within_kinds: bool,
) -> Comparison:
    """Compare all scores of one run, one score of it at several LoRA ranks, or several runs.

    Args:
        score: `None` for all scores of one run, else for each run's own.
        rank: `None` for each run's own.
        top: How many modules count as the highest.
    """
    reports: list[ScoreReport] = []
    facts: list[dict[str, Value]] = []
    ranked: list[tuple[str, str, int]] = []  # label, score and rank of each order
    scores: list[dict[str, tuple[float | None, tuple[float, ...]]]] = []  # with their resamples
    missing: list[str] = []
    for side in sides:
        report = side.content
        if isinstance(report, Plan):
            raise UsageError(
                f"'{side.path}' is a plan; scores are compared.",
                hint="Give a scores.parquet, or use `hlscore diff`, which takes plans.",
            )
        reports.append(report)
        with named(side.path):
            facts.append(facts_of(report))
            own, own_rank = find_score(score or report.run.score), rank or report.run.rank
            if ranks and not own.follows_rank:
                known = ", ".join(name for name, item in SCORES.items() if item.follows_rank)
                raise UsageError(
                    f"'{own.name}' is the same at every LoRA rank.", hint=f"Use --score {known}."
                )
            wanted = [(name, item, own_rank) for name, item in SCORES.items()]
            if ranks:
                wanted = [(f"rank {each}", own, each) for each in ranks]
            elif len(sides) > 1:
                wanted = [(side.label, own, own_rank)]
            rows = report.candidates
            for label, item, at in wanted:
                values = [score_of(row, item, at) for row in rows]
                if any(value is not None for value in values):
                    replicates = replicates_at(rows, item, at, report.run.rank)
                    both = zip(values, replicates, strict=True)
                    scores.append(dict(zip((row.module for row in rows), both, strict=True)))
                    ranked.append((label, item.name, at))
                elif len(sides) == 1:
                    missing.append(label)
                else:
                    raise UsageError(
                        f"No module has a value of '{own.name}'.",
                        hint="Choose another --score; `hlscore scores` says what each of them "
                        "needs.",
                    )
    if not ranked:
        raise ArtifactError(
            "No module has a score: no order can be compared.",
            hint="`hlscore rank MODEL` writes scores.",
        )

    # In the order of names: of equal scores the first name counts as higher.
    modules = sorted(set.intersection(*map(set, scores)))
    if len(modules) < 2:
        alone = bool(modules) and all(len(own) == 1 for own in scores)
        which = f"{'only one' if modules else 'no'} module{'' if alone else ' in common'}"
        hint = "" if alone else "Compare runs of the same model."
        raise ArtifactError(f"There is {which}: no order can be compared.", hint=hint)
    number = top.count if top.count is not None else max(1, share_of(top.share or 0, len(modules)))
    if number > len(modules):
        raise UsageError(
            f"--top-k is {top.text}, more than the {len(modules):,} modules that are compared."
        )

    kind_of = {row.module: (row.block, row.kind) for row in reports[0].candidates}
    kinds: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(modules):
        kinds.setdefault(kind_of[name], []).append(place)
    orders = [[own[name][0] for name in modules] for own in scores]
    places = range(len(orders))
    pairs = {
        (i, j): Pair(
            tau=kendall(orders[i], orders[j]),
            overlap=top_overlap(orders[i], orders[j], number),
            within_kinds=_within(orders[i], orders[j], kinds.values()) if within_kinds else None,
        )
        for i in places
        for j in places[i:]
    }
    return Comparison(
        sides=tuple(sides),
        facts=side_by_side(facts),
        rankings=tuple(
            Ranking(
                label=label,
                score=name,
                rank=at,
                resampled_tau=resampled_tau([own[module][1] for module in modules]),
                constant=len(set(order) - {None}) < 2,
            )
            for (label, name, at), own, order in zip(ranked, scores, orders, strict=True)
        ),
        missing=tuple(missing),
        modules=len(modules),
        top=number,
        pairs=tuple(tuple(pairs[min(i, j), max(i, j)] for j in places) for i in places),
        within_kinds=within_kinds,
        chosen=score is not None,
    )


def _within(x: Values, y: Values, groups: Iterable[Sequence[int]]) -> float | None:
    """Mean tau within groups of places, weighted by their sizes."""
    total, size = 0.0, 0
    for places in groups:
        tau = kendall([x[at] for at in places], [y[at] for at in places]).tau
        if tau is not None:
            total, size = total + len(places) * tau, size + len(places)
    return total / size if size else None
