"""How well several rankings of the same modules agree, each with each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlscore.agreement.kendall import RankAgreement, kendall, tau_b
from hlscore.agreement.overlap import top_overlap
from hlscore.agreement.rankings import Ranking
from hlscore.agreement.resamples import resampled_tau
from hlscore.errors import ArtifactError, UsageError
from hlscore.planning.budget import share_of

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """How well two rankings agree.

    Attributes:
        tau: Kendall's tau with its uncertainty over modules.
        overlap: Share of the highest modules that both have; `None` where a side has no order.
        within_kinds: Mean tau within kinds of modules, weighted by their modules; `None` where
            no kind has an order, or where it was not asked for.
    """

    tau: RankAgreement
    overlap: float | None
    within_kinds: float | None

    @property
    def jaccard(self) -> float | None:
        """Jaccard index of the two sets of highest modules, which are of one size."""
        return None if self.overlap is None else self.overlap / (2 - self.overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rankings compared with each other.

    Attributes:
        rankings: What is compared.
        modules: Modules that all of them have.
        top: How many of them count as the highest.
        pairs: By row and column, both in the order of the rankings; the matrix is symmetric.
        resampled: Tau between two resamples of each ranking; `None` where there are none.
        constant: Labels of rankings that give all modules the same value.
    """

    rankings: tuple[Ranking, ...]
    modules: int
    top: int
    pairs: tuple[tuple[Pair, ...], ...]
    resampled: tuple[float | None, ...]
    constant: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """How many modules count as the highest.

    Attributes:
        text: As given.
        share: Share of the modules; `None` for a number.
        number: Number of modules; `None` for a share.
    """

    text: str
    share: float | None = None
    number: int | None = None

    def of(self, modules: int) -> int:
        """Number of modules out of so many; of a share at least one."""
        if self.number is None:
            return max(1, share_of(self.share or 0.0, modules))
        if self.number > modules:
            raise UsageError(
                f"--top-k is {self.text}, more than the {modules:,} modules that are compared."
            )
        return self.number


def parse_top(text: str) -> Top:
    """Read `--top-k`.

    Args:
        text: `10%` or a number of modules.
    """
    plain = text.strip()
    if (match := _SHARE.fullmatch(plain)) and 0 < float(match.group(1)) <= 100:
        return Top(text=plain, share=float(match.group(1)) / 100)
    if _NUMBER.fullmatch(plain) and int(plain) > 0:
        return Top(text=plain, number=int(plain))
    raise UsageError(
        f"--top-k is '{text}'.", hint="Use a share of the modules such as 10%, or a number."
    )


def compare(rankings: Sequence[Ranking], top: Top, *, within_kinds: bool) -> Comparison:
    """Hold every ranking against every other, over the modules that all have.

    Args:
        rankings: All with values; of one nothing but its resamples is compared.
    """
    if not rankings:
        raise ArtifactError(
            "No module has a score: no order can be compared.",
            hint="`hlscore rank MODEL` writes scores.",
        )
    modules = _common(rankings)
    values = [[item.values[name] for name in modules] for item in rankings]
    number = top.of(len(modules))
    groups = _places(modules, rankings[0].kinds) if within_kinds else []
    found = {
        (i, j): Pair(
            tau=kendall(values[i], values[j]),
            overlap=top_overlap(values[i], values[j], number),
            within_kinds=_within(values[i], values[j], groups),
        )
        for i in range(len(values))
        for j in range(i, len(values))
    }
    places = range(len(values))
    return Comparison(
        rankings=tuple(rankings),
        modules=len(modules),
        top=number,
        pairs=tuple(tuple(found[min(i, j), max(i, j)] for j in places) for i in places),
        resampled=tuple(
            resampled_tau([item.replicates[name] for name in modules]) if item.replicates else None
            for item in rankings
        ),
        constant=tuple(
            item.label
            for item, own in zip(rankings, values, strict=True)
            if len({value for value in own if value is not None}) < 2
        ),
    )


def _common(rankings: Sequence[Ranking]) -> list[str]:
    """Names that all have, sorted: of equal scores the first name counts as higher."""
    names = sorted(set(rankings[0].values).intersection(*(item.values for item in rankings)))
    if len(names) == 1 and all(len(item.values) == 1 for item in rankings):
        raise ArtifactError("There is only one module: no order can be compared.")
    if len(names) < 2:
        found = "only one module" if names else "no module"
        raise ArtifactError(
            f"There is {found} in common: no order can be compared.",
            hint="Compare runs of the same model.",
        )
    return names


def _places(modules: Sequence[str], kinds: Mapping[str, str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(modules):
        groups.setdefault(kinds[name], []).append(place)
    return list(groups.values())


def _within(x: Values, y: Values, groups: Sequence[Sequence[int]]) -> float | None:
    total = modules = 0.0
    for places in groups:
        tau = tau_b([x[place] for place in places], [y[place] for place in places])
        if tau is not None:
            total += len(places) * tau
            modules += len(places)
    return total / modules if modules else None
