"""`hlscore compare`: how well scores, LoRA ranks or runs agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import LARGEST_RANK, Option, parse_ranks

if TYPE_CHECKING:
    from hlscore.records import ScoreReport

_PANEL = "What is compared"
_OWN = "each run's own"


def _ranks(text: str, flag: str) -> tuple[int, ...]:
    found = parse_ranks(text, flag)
    if not all(1 <= rank <= LARGEST_RANK for rank in found):
        raise UsageError(f"{flag} is {text}.", hint=f"Use 1 to {LARGEST_RANK}.")
    if len(found) < 2:
        raise UsageError(f"{flag} {text} is one rank.", hint="Give two or more, such as 4,16.")
    return found


@o.takes_settings
def compare(
    scores: Annotated[
        tuple[Path, ...], Option("One scores.parquet, or several to compare runs.", argument=True)
    ],
    score: Annotated[
        str | None,
        Option(
            "Score of the runs, or of --ranks; `hlscore scores` lists them.", _PANEL, default=_OWN
        ),
    ] = None,
    rank: Annotated[
        int | None,
        Option(
            "LoRA rank; one that the curves hold.",
            _PANEL,
            short="r",
            low=1,
            high=LARGEST_RANK,
            default=_OWN,
        ),
    ] = None,
    ranks: Annotated[
        tuple[int, ...],
        Option("Compare these LoRA ranks of one run, such as 4,16,64.", _PANEL, parse=_ranks),
    ] = (),
    within_kinds: Annotated[
        bool,
        Option(
            "Also compare within kinds of modules: kind and size explain much of an order.", _PANEL
        ),
    ] = False,
    top_k: Annotated[
        str,
        Option("How many modules count as the highest: a share such as 10%, or a number.", _PANEL),
    ] = "10%",
    as_json: o.Json = False,
) -> None:
    """Compare all scores of one run, one score at several LoRA ranks, or several runs.

    The last column shows how well a ranking agrees with itself: two resamples of its own probes.

    **Examples**

    `hlscore compare hlscore-out/builtin-tiny/scores.parquet`

    `hlscore compare seed-0/scores.parquet seed-1/scores.parquet --score tail --top-k 8`

    `hlscore compare scores.parquet --ranks 4,16,64 --within-kinds`
    """
    from hlscore.agreement import comparison, rankings
    from hlscore.agreement.facts import report_facts, side_by_side
    from hlscore.agreement.labels import short_labels
    from hlscore.artifacts.reading import uncollected
    from hlscore.scores.registry import SCORES, find_score
    from hlscore.views.compare import Compared, print_comparison
    from hlscore.views.progress import status

    top = comparison.parse_top(top_k)
    if score is not None:
        find_score(score)
    if len(scores) > 1 and ranks:
        raise UsageError("--ranks compares LoRA ranks of one run.", hint="Give one score file.")
    if ranks and rank is not None:
        raise UsageError("--rank and --ranks are mutually exclusive.", hint="Remove one of them.")
    whole = len(scores) == 1 and not ranks
    if whole and score is not None:
        raise UsageError(
            "All scores of one run are compared; --score selects one.",
            hint="Give several score files, or --ranks 4,16,64.",
        )
    with status("comparing"), uncollected():
        reports = [_read(path, tuple(SCORES) if whole else (score,)) for path in scores]
        labels = short_labels(scores)
        if len(scores) > 1:
            found = [
                rankings.run_ranking(report, label, score, rank)
                for report, label in zip(reports, labels, strict=True)
            ]
        elif ranks:
            found = rankings.ranks_of(reports[0], score, ranks)
        else:
            found = rankings.scores_of(reports[0], rank)
        filled = [item for item in found if not item.empty]
        compared = Compared(
            comparison=comparison.compare(filled, top, within_kinds=within_kinds),
            paths=scores,
            labels=tuple(labels),
            facts=side_by_side(
                [report_facts(path, report) for path, report in zip(scores, reports, strict=True)]
            ),
            missing=tuple(item.label for item in found if item.empty),
            structures=tuple(report.model.fingerprint.structure for report in reports),
            within_kinds=within_kinds,
            chosen=score is not None,
        )
    print_comparison(compared, as_json=as_json)


def _read(path: Path, names: Sequence[str | None]) -> ScoreReport:
    """Read scores with as many resamples as are compared; `None` names the run's own score."""
    from hlscore.agreement.resamples import MOST_PAIRS
    from hlscore.artifacts.plan import Plan
    from hlscore.artifacts.reading import read_artifact
    from hlscore.artifacts.report import Resamples

    found = read_artifact(
        path,
        resamples=Resamples(
            scores=lambda run: [name or run.score for name in names], most=2 * MOST_PAIRS
        ),
    )
    if isinstance(found, Plan):
        raise UsageError(
            f"'{path}' is a plan; scores are compared.",
            hint="Give a scores.parquet, or use `hlscore diff`, which takes plans.",
        )
    return found
