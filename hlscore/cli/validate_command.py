"""`hlscore validate`: is the plan worth it, on one's own model and data?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from hlscore.cli import objective_options as j
from hlscore.cli import options as o
from hlscore.errors import Interrupted
from hlscore.settings import (
    DEFAULT_SAMPLES,
    DEFAULT_STEPS,
    NO_DATA,
    DataSettings,
    ModelSettings,
    ValidateSettings,
)

TRIAL_PANEL = "Trial"


def validate(
    model: o.Model,
    plan: Annotated[
        Path,
        typer.Option(
            "--plan",
            "-p",
            help="The plan.json to try out.",
            show_default=False,
            rich_help_panel=TRIAL_PANEL,
        ),
    ],
    steps: Annotated[
        int,
        typer.Option("--steps", help="Steps of each training.", rich_help_panel=TRIAL_PANEL),
    ] = DEFAULT_STEPS,
    seeds: Annotated[
        int,
        typer.Option("--seeds", help="Trainings of each arm.", rich_help_panel=TRIAL_PANEL),
    ] = 3,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", help="Sequences per step.", rich_help_panel=TRIAL_PANEL),
    ] = 8,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out",
            help="Share of the examples that is not trained on; half of it chooses the rates.",
            rich_help_panel=TRIAL_PANEL,
        ),
    ] = 0.3,
    full: Annotated[
        bool,
        typer.Option(
            "--full/--no-full",
            help="Train in full too: without it no gap is known.",
            rich_help_panel=TRIAL_PANEL,
        ),
    ] = True,
    also: Annotated[
        str | None,
        typer.Option(
            "--also",
            help="Other data, in the same columns: report the loss there before and after.",
            show_default=False,
            rich_help_panel=TRIAL_PANEL,
        ),
    ] = None,
    data: o.Data = None,
    data_config: o.DataConfig = None,
    split: o.Split = "train",
    column: o.Columns = ...,  # type: ignore[assignment]
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            help="Examples to draw; 0 means all.",
            show_default="all; of a hub data set as many as the steps need",
            rich_help_panel=o.DATA_PANEL,
        ),
    ] = None,
    max_length: o.MaxLength = None,
    assistant_only_loss: j.AssistantOnly = False,
    revision: o.Revision = None,
    dtype: o.DtypeOption = "auto",
    device: o.Device = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of every draw.", rich_help_panel=TRIAL_PANEL)
    ] = 0,
    out: o.Out = None,
    force: o.Force = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a trial that was stopped.", rich_help_panel=o.OUTPUT_PANEL
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Time a few steps and say what the trial would take.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Try a plan out on a MODEL: short paired trainings against LoRA, random choice and full.

    Needs TRL (`pip install 'hlscore[trl]'`). Every arm has its own learning rates, and the same
    examples in the same order.

    **Examples**

    `hlscore validate builtin:tiny --plan hlscore-out/builtin-tiny/plan.json`

    `hlscore validate Qwen/Qwen3-0.6B --plan plan.json --data train.jsonl --steps 200 --seeds 5`
    """
    settings = ValidateSettings(
        model=ModelSettings(
            model=model, revision=revision, dtype=dtype, device=device,
            allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        ),
        data=DataSettings(
            data=data, config=data_config, split=split, columns=o.parse_columns(column),
            samples=drawn_by_trial(samples, data, steps * batch_size, held_out),
            max_length=max_length,
        ),
        assistant_only_loss=assistant_only_loss, steps=steps, batch_size=batch_size, seeds=seeds,
        held_out=held_out, full=full, seed=seed, also=also,
    )  # fmt: skip
    try:
        _run(settings, plan, out, force=force, resume=resume, dry_run=dry_run, as_json=as_json)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted: finished trainings are kept.",
            hint="The same command with --resume goes on.",
        ) from None


def drawn_by_trial(asked: int | None, data: str | None, shown: int, held_out: float) -> int:
    """Examples to draw: of a hub data set at most one for each that a training is shown."""
    if asked is not None:
        return asked
    from hlscore.inputs.examples import is_on_hub

    if data == NO_DATA or not is_on_hub(data) or not 0 < held_out < 1:
        return 0
    return max(DEFAULT_SAMPLES, math.ceil(shown / (1 - held_out)))


def _run(
    settings: ValidateSettings, plan_path: Path, out: Path | None,
    *, force: bool, resume: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    from hlscore.artifacts.files import VALIDATION_FILE, check_folder, default_folder, write_files
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.exporters.exporter import text_file
    from hlscore.views.progress import status, terminal_progress, warn
    from hlscore.views.validation import (
        print_forecast,
        print_forecast_json,
        print_validation,
        print_validation_json,
    )

    plan = read_plan(plan_path)
    folder = out or default_folder(settings.model.model)
    if not dry_run:
        check_folder(folder, (VALIDATION_FILE,), force=force or resume)
    _check_trl()

    from hlscore.inputs.placement import quiet_libraries

    with quiet_libraries():
        from hlscore.inputs.model import resolve_device
        from hlscore.inputs.placement import dtype_warning
        from hlscore.validation.journal import JOURNAL
        from hlscore.validation.run import prepare, seconds_per_training, validate

    warn(dtype_warning(settings.model, resolve_device(settings.model.device)))
    with status("loading"):
        trial = prepare(settings, plan)
    if dry_run:
        with status("timing a few steps"):
            seconds = seconds_per_training(trial)
        trainings = (trial.fewest_trainings, trial.most_trainings)
        arms = [(arm.name, arm.trained_params, arm.memory_bytes) for arm in trial.arms]
        show = print_forecast_json if as_json else print_forecast
        show(trainings, settings.steps, seconds, arms)
        return
    journal = folder / JOURNAL
    if force and not resume:
        journal.unlink(missing_ok=True)
    with terminal_progress() as progress:
        content = validate(trial, folder, progress, resume=resume)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    path = write_files(folder, {VALIDATION_FILE: text_file(text)})[VALIDATION_FILE]
    journal.unlink(missing_ok=True)
    if as_json:
        print_validation_json(content, path)
    else:
        print_validation(content, path, plan, plan_path)


def _check_trl() -> None:
    from importlib.util import find_spec

    from hlscore.errors import UsageError

    missing = [name for name in ("trl", "peft") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"Plans are tried out with TRL and PEFT: {' and '.join(missing)} is not installed.",
            hint="Run pip install 'hlscore[trl]'.",
        )
