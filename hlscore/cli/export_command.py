"""`hlscore export`: a plan in the format of a trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hlscore.cli import options as o
from hlscore.errors import UsageError

if TYPE_CHECKING:
    from hlscore.artifacts.plan import Plan
    from hlscore.exporters.exporter import Exporter, ExportSettings

_PANEL = "Export"


def export(
    plan: Annotated[Path | None, typer.Argument(help="A plan.json.", show_default=False)] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            "-t",
            help="Format; --list names them.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File or folder to write.",
            show_default="beside the plan",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the formats.", rich_help_panel=_PANEL)
    ] = False,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest",
            help="Where the trainer cannot express the plan, export the nearest one it can.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Hub id or directory of the base model.",
            show_default="the plan's",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    full_lr: Annotated[
        float | None,
        typer.Option(
            "--full-lr",
            help="Learning rate of modules trained in full.",
            show_default="the plan's suggestion",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    lora_lr: Annotated[
        float | None,
        typer.Option(
            "--lora-lr",
            help="Learning rate of the adapters.",
            show_default="the plan's suggestion",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    allow_other_weights: Annotated[
        bool,
        typer.Option(
            "--allow-other-weights",
            help="Do not warn of a base model with other weights.",
            rich_help_panel=_PANEL,
        ),
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
    from hlscore.views.export import print_exporters, print_exporters_json

    if list_all:
        (print_exporters_json if as_json else print_exporters)()
        return
    if plan is None or to is None:
        raise UsageError(
            "export needs a plan and a format.",
            hint="hlscore export plan.json --to peft; hlscore export --list names the formats.",
        )
    from hlscore.artifacts.plan_file import read_plan
    from hlscore.exporters.exporter import ExportSettings, find_exporter

    exporter = find_exporter(to)
    settings = ExportSettings(
        model=model, full_lr=full_lr, lora_lr=lora_lr, allow_other_weights=allow_other_weights
    )
    found = read_plan(plan)
    _export(found, exporter, settings, out, plan, nearest=nearest, force=force, as_json=as_json)


def _export(
    plan: Plan,
    exporter: Exporter,
    settings: ExportSettings,
    out: Path | None,
    source: Path,
    *,
    nearest: bool,
    force: bool,
    as_json: bool,
) -> None:
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.exporters.limits import check_limits
    from hlscore.exporters.nearest import nearest as nearest_plan
    from hlscore.views.export import print_export, print_export_json
    from hlscore.views.progress import status

    changes: tuple[str, ...] = ()
    if nearest:
        plan, changes = nearest_plan(plan, exporter.limits)
    else:
        check_limits(plan, exporter.limits)
    with status(f"writing {exporter.name}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        writers = exporter.writers(plan, settings)
        if exporter.folder:
            folder = out or source.parent / exporter.name
        else:
            (default, writer), *_ = writers.items()
            target = source.parent / default if out is None else _named(out, default)
            if target.resolve() == source.resolve():
                raise UsageError(f"--out '{target}' is the plan itself.", hint="Give another file.")
            folder, writers = target.parent, {target.name: writer}
        check_folder(folder, tuple(writers), force=force)
        paths = write_files(folder, writers)
    said = (*(str(item.message) for item in caught), *exporter.all_notes(plan, settings))
    result = folder if exporter.folder else next(iter(paths.values()))
    if as_json:
        print_export_json(exporter, result, paths, changes=changes, notes=said)
    else:
        print_export(exporter, plan, result, paths, changes=changes, notes=said)


def _named(out: Path, default: str) -> Path:
    """The file to write: trainers tell the format of a configuration by its suffix."""
    if out.is_dir():
        return out / default
    suffix = Path(default).suffix
    return out if out.suffix else out.with_name(f"{out.name}{suffix}")
