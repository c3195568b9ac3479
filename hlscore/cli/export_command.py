"""`hlscore export`: a plan in the format of a trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import Option

_PANEL = "Export"
_SUGGESTED = "the plan's suggestion"


@o.takes_settings
def export(
    plan: Annotated[Path | None, Option("A plan.json.", argument=True)] = None,
    to: Annotated[str | None, Option("Format; --list names them.", _PANEL, short="t")] = None,
    out: Annotated[
        Path | None, Option("File or folder to write.", short="o", default="beside the plan")
    ] = None,
    list_all: Annotated[bool, Option("List the formats.", _PANEL, name="list")] = False,
    nearest: Annotated[
        bool, Option("If the trainer cannot run the plan, export the nearest one it can.", _PANEL)
    ] = False,
    model: Annotated[
        str | None, Option("Hub id or directory of the base model.", _PANEL, default="the plan's")
    ] = None,
    full_lr: Annotated[
        float | None,
        Option("Learning rate of modules trained in full.", _PANEL, above=0, default=_SUGGESTED),
    ] = None,
    lora_lr: Annotated[
        float | None, Option("Learning rate of the adapters.", _PANEL, above=0, default=_SUGGESTED)
    ] = None,
    allow_other_weights: Annotated[
        bool, Option("Do not warn about a base model with other weights.", _PANEL)
    ] = False,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Write a PLAN in the format of a trainer.

    What a trainer cannot express is refused, with the reason.

    **Examples**

    `hlscore export --list`

    `hlscore export plan.json --to axolotl -o hybrid.yaml`

    `hlscore export plan.json --to seed-adapter -o seed/`
    """
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.exporters.exporter import Export, find_exporter
    from hlscore.exporters.limits import check_limits
    from hlscore.exporters.limits import nearest as nearest_plan
    from hlscore.views.export import print_export, print_exporters
    from hlscore.views.progress import status

    if list_all:
        print_exporters(as_json=as_json)
        return
    if plan is None or to is None:
        raise UsageError(
            "export needs a plan and a format.",
            hint="hlscore export plan.json --to peft; hlscore export --list names the formats.",
        )
    exporter = find_exporter(to)
    asked = read_plan(plan)
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
        exporter, asked, target, paths.values(), changes=changes, notes=notes, as_json=as_json
    )
