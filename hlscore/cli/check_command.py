"""`hlscore check`: hold plans against rules, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlscore.cli import options as o
from hlscore.errors import EXIT_CHECK_FAILED, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hlscore.checks.findings import CheckResult

_MODEL_PANEL = "Against the model"
_TRAINER_PANEL = "Against trainers"
_STABILITY_PANEL = "Stability and age"
_BASELINE_PANEL = "Against another plan"

Format = Literal["text", "json", "github", "junit", "sarif"]


def check(
    plans: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Plans; those of the configuration where none is named.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Hub id, directory or builtin:tiny: every module must be there, in its shape. "
            "Its configuration is enough.",
            rich_help_panel=_MODEL_PANEL,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Branch, tag or commit of a hub model.",
            rich_help_panel=_MODEL_PANEL,
            show_default="the plan's, for its own model",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that comes with the model.",
            rich_help_panel=_MODEL_PANEL,
        ),
    ] = False,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights",
            help="The model's weights must be those that were scored.",
            rich_help_panel=_MODEL_PANEL,
        ),
    ] = False,
    trainers: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            help="Trainer that must be able to run the plan (repeatable); `hlscore export --list` "
            "names them.",
            rich_help_panel=_TRAINER_PANEL,
            show_default=False,
        ),
    ] = None,
    min_selection_probability: Annotated[
        float | None,
        typer.Option(
            "--min-selection-probability",
            help="Least share of resamples that must choose a module in full.",
            rich_help_panel=_STABILITY_PANEL,
            show_default=False,
        ),
    ] = None,
    max_borderline: Annotated[
        str | None,
        typer.Option(
            "--max-borderline",
            help="Most modules chosen in 10 % to 90 % of the resamples: 3, or 10%.",
            rich_help_panel=_STABILITY_PANEL,
            show_default=False,
        ),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            "--max-age",
            help="Most days or weeks since the plan was changed (its last commit): 90d, 12w.",
            rich_help_panel=_STABILITY_PANEL,
            show_default=False,
        ),
    ] = None,
    max_drift: Annotated[
        Literal["none", "patch", "minor"] | None,
        typer.Option(
            "--max-drift",
            help="How far installed libraries may be from those that scored.",
            rich_help_panel=_STABILITY_PANEL,
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help="Another plan to compare with.",
            rich_help_panel=_BASELINE_PANEL,
            show_default=False,
        ),
    ] = None,
    max_changed: Annotated[
        str | None,
        typer.Option(
            "--max-changed",
            help="Most modules whose mode or rank may differ: 3, or 5%.",
            rich_help_panel=_BASELINE_PANEL,
            show_default=False,
        ),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            "--min-overlap",
            help="Least Jaccard index of the modules in full.",
            rich_help_panel=_BASELINE_PANEL,
            show_default=False,
        ),
    ] = None,
    min_tau: Annotated[
        float | None,
        typer.Option(
            "--min-tau",
            help="Least Kendall rank correlation of the scores.",
            rich_help_panel=_BASELINE_PANEL,
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="TOML file with these options as keys.",
            show_default="hlscore-check.toml, or [tool.hlscore.check] of pyproject.toml",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", help="Code to leave out (repeatable).", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail the check too.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", help="Say what a code asks for, or all of them.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Format,
        typer.Option("--format", help="Format of the result.", rich_help_panel=o.OUTPUT_PANEL),
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for the result in that format; text is printed then.",
            rich_help_panel=o.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Check plans: are they whole, within budget, and what the rules of a repository ask for?

    Exit status: 0 passed, 1 failed, 2 wrong usage, 3 could not run.

    **Examples**

    `hlscore check hlscore-out/builtin-tiny/plan.json`

    `hlscore check plan.json --model Qwen/Qwen3-8B --for peft --for axolotl`

    `hlscore check plan.json --baseline main.json --max-changed 5% --min-tau 0.6 --format github`

    `hlscore check --explain HLS403`
    """
    if explain is not None:
        _explain(explain, as_json=as_json)
        return
    from hlscore.checks.configuration import read_options
    from hlscore.checks.run import check_plan, check_settings
    from hlscore.views.progress import status

    options = read_options(
        config,
        {
            "plans": [str(plan) for plan in plans or ()],
            "model": model,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "weights": weights,
            "for_": trainers,
            "min_selection_probability": min_selection_probability,
            "max_borderline": max_borderline,
            "max_age": max_age,
            "max_drift": max_drift,
            "baseline": None if baseline is None else str(baseline),
            "max_changed": max_changed,
            "min_overlap": min_overlap,
            "min_tau": min_tau,
            "ignore": ignore,
            "strict": strict,
        },
    )
    if not options.plans:
        raise UsageError("No plan is named.", hint="Give one, or `plans` in the configuration.")
    settings = options.settings()
    check_settings(settings)
    with status("checking"):
        results = [check_plan(Path(plan), settings) for plan in options.plans]
    _show(results, "json" if as_json else form, out)
    if not all(result.passed for result in results):
        raise typer.Exit(EXIT_CHECK_FAILED)


def _explain(code: str, *, as_json: bool) -> None:
    from hlscore.checks.registry import RULES, find_rule
    from hlscore.views.check import print_rules, print_rules_json

    rules = list(RULES.values()) if code == "all" else [find_rule(code)]
    if as_json:
        print_rules_json(rules)
    else:
        print_rules(rules)


def _show(results: Sequence[CheckResult], form: Format, out: Path | None) -> None:
    from hlscore.views import check_formats
    from hlscore.views.check import check_json, check_text, print_check

    writers = {
        "text": check_text,
        "json": check_json,
        "github": check_formats.github,
        "junit": check_formats.junit,
        "sarif": check_formats.sarif,
    }
    if out is not None:
        _write(out, writers[form](results))
    if form == "text" or out is not None:
        print_check(results)
    else:
        print(writers[form](results), end="")


def _write(out: Path, text: str) -> None:
    from hlscore.artifacts.files import check_folder, write_files
    from hlscore.exporters.exporter import text_file

    check_folder(out.parent, (out.name,), force=True)
    write_files(out.parent, {out.name: text_file(text)})
