"""`hlscore export`: a plan in the format of a trainer."""

from __future__ import annotations

import warnings
from pathlib import Path

from hlscore.artifacts.files import check_folder, write_files
from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import option, refuse_both
from hlscore.views.progress import status, warn

_SUGGESTED = "the plan's suggestion"


@o.command("Export")
def export(
    plan: Path | None = option(None, "A plan.json.", argument=True),
    to: str | None = option(None, "Format; --list names them.", short="t"),
    out: Path | None = option(
        None, "File or folder to write.", o.OUTPUT, short="o", default="beside the plan"
    ),
    list_all: bool = option(False, "List the formats.", name="list"),
    nearest: bool = option(
        False, "If the trainer cannot run the plan, export the nearest one it can."
    ),
    model: str | None = option(
        None, "Hub id or directory of the base model.", default="the plan's"
    ),
    full_lr: float | None = option(
        None, "Learning rate of modules trained in full.", above=0, default=_SUGGESTED
    ),
    lora_lr: float | None = option(
        None, "Learning rate of the adapters.", above=0, default=_SUGGESTED
    ),
    allow_other_weights: bool = option(False, "Do not warn about a base model with other weights."),
    force: bool = o.FORCE,
    as_json: bool = o.JSON,
) -> None:
    """Write a PLAN in the format of a trainer.

    What a trainer cannot express is refused, with the reason.

    **Examples**

    - `hlscore export --list`
    - `hlscore export plan.json --to axolotl -o hybrid.yaml`
    - `hlscore export plan.json --to seed-adapter -o seed/`
    """
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.checks.run import contradiction
    from hlscore.exporters.exporter import Export, find_exporter
    from hlscore.exporters.limits import check_limits
    from hlscore.exporters.limits import nearest as nearest_plan
    from hlscore.views.export import print_export, print_exporters

    if list_all:
        refuse_both("--list", "--to", to is not None)
        refuse_both("--list", "a plan", plan is not None)
        print_exporters(as_json=as_json)
        return
    if plan is None or to is None:
        raise UsageError(
            "export needs a plan and a format.",
            hint="hlscore export plan.json --to peft; hlscore export --list names the formats.",
        )
    exporter = find_exporter(to)
    asked = read_plan(plan)
    warn(contradiction(plan, asked))
    changes: tuple[str, ...] = ()
    if nearest:
        asked, changes = nearest_plan(asked, exporter.limits)
    else:
        check_limits(asked, exporter.limits)
    settings = Export(
        plan=asked, model=model, full_lr=full_lr, lora_lr=lora_lr,
        allow_other_weights=allow_other_weights,
    )  # fmt: skip
    with status(f"writing {exporter.name}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        files = dict(exporter.files(settings))
        if exporter.folder:
            target = folder = out or plan.parent / exporter.name
        else:
            ((default, content),) = files.items()
            target = out or plan.parent / default
            if target.is_dir() and out is not None:
                target /= default
            elif not target.suffix:  # trainers tell the format of a configuration by it
                target = target.with_name(target.name + Path(default).suffix)
            if target.resolve() == plan.resolve():
                raise UsageError(f"--out '{target}' is the plan itself.", hint="Give another file.")
            folder, files = target.parent, {target.name: content}
        check_folder(folder, tuple(files), force=force)
        paths = write_files(folder, files)
    notes = (*(str(item.message) for item in caught), *exporter.notes(settings))
    print_export(
        exporter, settings, target, paths.values(), changes=changes, notes=notes, as_json=as_json
    )
