"""`hlscore validate`: is the plan worth it, on one's own model and data?"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated

from hlscore.artifacts.files import VALIDATION_FILE, check_folder, default_folder, write_files
from hlscore.cli import options as o
from hlscore.errors import Interrupted, UsageError
from hlscore.settings import DEFAULT_SAMPLES, NOT_VALIDATED, ValidateSettings, build, option
from hlscore.unfinished import nothing_to_resume
from hlscore.views.progress import refused_unless, status, terminal_progress, warn

_SAMPLES = "all; of a hub data set as many as the steps need"


@o.command()
def validate(
    given: Annotated[
        o.Given,
        o.Options(
            ValidateSettings,
            without=NOT_VALIDATED,
            **o.SUPERVISED | {"samples": o.SUPERVISED["samples"] | {"default": _SAMPLES}},
        ),
    ],
    plan: Path = option(MISSING, "The plan.json to validate.", ValidateSettings.panel, short="p"),
    out: Path | None = o.OUT,
    force: bool = o.FORCE,
    resume: bool = option(False, "Continue an interrupted validation."),
    dry_run: bool = option(False, "Time a few steps and estimate the whole validation."),
    as_json: bool = o.JSON,
) -> None:
    """Validate a plan on a MODEL: short paired trainings of the plan and its baselines.

    Needs TRL (`pip install 'hlscore[trl]'`). Every arm has its own learning rates, and the same
    examples in the same order.

    **Examples**

    - `hlscore validate builtin:tiny --plan hlscore-out/builtin-tiny/plan.json`
    - `hlscore validate Qwen/Qwen3-0.6B --plan plan.json --data train.jsonl --steps 200 --seeds 5`
    """
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.views.validation import print_validation, print_validation_forecast

    if "samples" not in given:
        given["samples"] = drawn_by_training(build(ValidateSettings, given))
    settings = build(ValidateSettings, given)
    planned = read_plan(plan)
    folder = out or default_folder(settings.model.model)
    with refused_unless(dry_run):
        check_folder(folder, (VALIDATION_FILE,), force=force or resume)
    missing = [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"hlscore validate needs TRL and PEFT: {' and '.join(missing)} is not installed.",
            hint="Run pip install 'hlscore[trl]'.",
        )
    from hlscore.inputs.placement import quiet_libraries

    with quiet_libraries():
        from hlscore.inputs.model import dtype_warning
        from hlscore.validation import run

    journal = folder / run.JOURNAL
    if resume and not journal.exists():
        raise nothing_to_resume(folder)
    warn(dtype_warning(settings.model))
    with status("loading"):
        validation = run.prepare(settings, planned)
    if dry_run:
        with status("timing a few steps"):
            seconds = run.seconds_per_training(validation)
        print_validation_forecast(validation, seconds, as_json=as_json)
        return
    if force and not resume:
        journal.unlink(missing_ok=True)
    try:
        with terminal_progress() as progress:
            found = run.validate(validation, folder, progress, resume=resume)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted: finished trainings are kept.",
            hint="Run the same command with --resume to continue.",
        ) from None
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    write_files(folder, {VALIDATION_FILE: text})
    journal.unlink(missing_ok=True)
    print_validation(found, folder / VALIDATION_FILE, planned, plan, as_json=as_json)


def drawn_by_training(settings: ValidateSettings) -> int:
    """Examples to draw: of a hub data set at most one for each that a training is shown."""
    from hlscore.inputs.examples import is_on_hub

    if not is_on_hub(settings.data.data):
        return 0
    shown = settings.steps * settings.batch_size
    return max(DEFAULT_SAMPLES, math.ceil(shown / (1 - settings.held_out)))
