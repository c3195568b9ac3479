"""`hlscore check`: hold plans against rules, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hlscore.cli import options as o
from hlscore.errors import EXIT_CHECK_FAILED, UsageError
from hlscore.settings import CheckSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hlscore.checks.findings import CheckResult

Format = Literal["text", "json", "github", "junit", "sarif"]


@o.takes_settings
def check(
    settings: Annotated[o.Given, o.Options(CheckSettings)],
    plans: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Plans; those of the configuration where none is named.", show_default=False
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
    from hlscore.checks.configuration import PLANS, read_configuration
    from hlscore.checks.run import check_plan, check_settings
    from hlscore.views.progress import status

    # What is typed counts where both speak; a flag that is off was not typed.
    kept = read_configuration(config)
    typed = {name: value for name, value in settings.items() if value is not False}
    files = plans or [Path(plan) for plan in kept.pop(PLANS, ())]
    kept.pop(PLANS, None)
    if not files:
        raise UsageError("No plan is named.", hint="Give one, or `plans` in the configuration.")
    asked = CheckSettings(**kept | typed)
    check_settings(asked)
    with status("checking"):
        results = [check_plan(plan, asked) for plan in files]
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
