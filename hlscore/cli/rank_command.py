"""`hlscore rank`: the whole flow, once."""

from __future__ import annotations

from typing import Annotated

import typer

from hlscore.cli import options as o
from hlscore.cli.rank_run import Saved, run_forecast, run_rank
from hlscore.settings import RankSettings


@o.takes_settings
def rank(
    settings: Annotated[RankSettings, o.Options(without=("baseline",))],
    out: o.Out = None,
    force: o.Force = False,
    save_every: Annotated[
        float,
        typer.Option(
            "--save-every",
            min=0,
            help="Seconds between two writes of the progress; 0 turns them off.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = 300,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the unfinished run in the folder of the results.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
    top: o.Top = 15,
    as_json: o.Json = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would happen, load no weights, write nothing.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Score every module of a MODEL and plan which to train in full.

    Runs probe batches forward and backward, writes `scores.parquet` and `plan.json`.

    **Examples**

    `hlscore rank builtin:tiny --budget 0.1`

    `hlscore rank Qwen/Qwen3-0.6B --data train.jsonl --rank 32`

    `hlscore rank ./model --budget 0.1p --column prompt=question --column completion=answer`

    `hlscore rank ./model --data prompts.jsonl --objective grpo --reward math`

    `hlscore rank ./model --data pairs.jsonl --objective dpo --beta 0.1`

    `hlscore rank ./model --data train.jsonl --movement trial`

    `hlscore rank ./model --estimator sketch --load-in 4bit`

    `hlscore rank ./model --data none --score snr`

    `hlscore rank ./model --update ./run-seed-0 --update ./run-seed-1`

    `torchrun --nproc-per-node 8 -m hlscore rank ./model --data train.jsonl`
    """
    if dry_run:
        run_forecast(settings, as_json=as_json)
    else:
        saved = Saved(every_seconds=save_every, resume=resume, force=force)
        run_rank(settings, out, saved, top=top, as_json=as_json)
