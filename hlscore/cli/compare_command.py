"""`hlscore compare`: how well scores, LoRA ranks or runs agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import parse_ranks

if TYPE_CHECKING:
    from hlscore.agreement.rankings import Ranking
    from hlscore.records import ScoreReport

COMPARED_PANEL = "What is compared"


def compare(
    scores: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES...",
            help="One scores.parquet, or several to compare runs.",
            show_default=False,
        ),
    ],
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            help="Score of the runs, or of --ranks; `hlscore scores` lists them.",
            show_default="each run's own",
            rich_help_panel=COMPARED_PANEL,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            "-r",
            help="LoRA rank; one of those that the curves hold.",
            show_default="each run's own",
            rich_help_panel=COMPARED_PANEL,
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            help="Compare these LoRA ranks of one run, such as 4,16,64.",
            show_default=False,
            rich_help_panel=COMPARED_PANEL,
        ),
    ] = None,
    within_kinds: Annotated[
        bool,
        typer.Option(
            "--within-kinds",
            help="Compare within kinds of modules too: kind and size explain much of an order.",
            rich_help_panel=COMPARED_PANEL,
        ),
    ] = False,
    top_k: Annotated[
        str,
        typer.Option(
            "--top-k",
            help="How many modules count as the highest: a share such as 10%, or a number.",
            rich_help_panel=COMPARED_PANEL,
        ),
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
    from hlscore.agreement import comparison
    from hlscore.agreement.facts import report_facts, side_by_side
    from hlscore.agreement.labels import short_labels
    from hlscore.artifacts.reading import uncollected
    from hlscore.scores.registry import SCORES, find_score
    from hlscore.views.compare import Compared, print_comparison, print_comparison_json
    from hlscore.views.progress import status

    top = comparison.parse_top(top_k)
    if score is not None:
        find_score(score)
    _check_options(scores, score, rank, ranks)
    with status("comparing"), uncollected():
        whole = len(scores) == 1 and ranks is None
        reports = [_read(path, tuple(SCORES) if whole else (score,)) for path in scores]
        labels = short_labels(scores)
        rankings = _rankings(reports, labels, score, rank, ranks)
        missing = tuple(item.label for item in rankings if item.empty)
        found = comparison.compare(
            [item for item in rankings if not item.empty], top, within_kinds=within_kinds
        )
        facts = side_by_side(
            [report_facts(path, report) for path, report in zip(scores, reports, strict=True)]
        )
    compared = Compared(
        comparison=found,
        paths=tuple(scores),
        labels=tuple(labels),
        facts=facts,
        missing=missing,
        structures=tuple(report.model.fingerprint.structure for report in reports),
        within_kinds=within_kinds,
        chosen=score is not None,
    )
    if as_json:
        print_comparison_json(compared)
    else:
        print_comparison(compared)


def _ranks(text: str | None) -> tuple[int, ...]:
    return () if text is None else parse_ranks(text, "--ranks")


def _check_options(
    files: Sequence[Path], score: str | None, rank: int | None, ranks: str | None
) -> None:
    from hlscore.artifacts.plan import LARGEST_RANK

    if len(files) > 1 and ranks is not None:
        raise UsageError("--ranks compares LoRA ranks of one run.", hint="Give one score file.")
    if ranks is not None and rank is not None:
        raise UsageError("--rank and --ranks are mutually exclusive.", hint="Remove one of them.")
    for option, asked in (("--rank", [rank] if rank is not None else []),
                          ("--ranks", _ranks(ranks))):  # fmt: skip
        if not all(1 <= item <= LARGEST_RANK for item in asked):
            raise UsageError(
                f"{option} is {ranks if rank is None else rank}.", hint=f"Use 1 to {LARGEST_RANK}."
            )
    if ranks is not None and len(_ranks(ranks)) < 2:
        raise UsageError(f"--ranks {ranks} is one rank.", hint="Give two or more, such as 4,16.")
    if len(files) == 1 and ranks is None and score is not None:
        raise UsageError(
            "Of one run all scores are compared; --score chooses one.",
            hint="Give several score files, or --ranks 4,16,64.",
        )


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


def _rankings(
    reports: Sequence[ScoreReport],
    labels: Sequence[str],
    score: str | None,
    rank: int | None,
    ranks: str | None,
) -> list[Ranking]:
    from hlscore.agreement.rankings import ranks_of, run_ranking, scores_of

    if len(reports) > 1:
        return [
            run_ranking(report, label, score, rank)
            for report, label in zip(reports, labels, strict=True)
        ]
    if ranks is not None:
        return ranks_of(reports[0], score, _ranks(ranks))
    return scores_of(reports[0], rank)
