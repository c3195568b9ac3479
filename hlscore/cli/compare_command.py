"""`hlscore compare`: how well scores, LoRA ranks or runs agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import LARGEST_RANK, Option, parse_limit, parse_ranks

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
            "LoRA rank; one at which the report has scores.",
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
    from hlscore.agreement import comparison
    from hlscore.agreement.sides import read_sides
    from hlscore.scores.registry import find_score
    from hlscore.views.compare import print_comparison
    from hlscore.views.progress import status

    top = parse_limit(top_k, "--top-k")
    if not (top.count or top.share):
        raise UsageError(f"--top-k is '{top_k}'.", hint="Use a number or a share above 0.")
    if score is not None:
        find_score(score)
    if len(scores) > 1 and ranks:
        raise UsageError("--ranks compares LoRA ranks of one run.", hint="Give one score file.")
    if ranks and rank is not None:
        raise UsageError("--rank and --ranks are mutually exclusive.", hint="Remove one of them.")
    if len(scores) == 1 and not ranks and score is not None:
        raise UsageError(
            "All scores of one run are compared; --score selects one.",
            hint="Give several score files, or --ranks 4,16,64.",
        )
    with status("comparing"):
        sides = read_sides(scores)
        found = comparison.compare(
            sides, score=score, rank=rank, ranks=ranks, top=top, within_kinds=within_kinds
        )
    print_comparison(found, as_json=as_json)
