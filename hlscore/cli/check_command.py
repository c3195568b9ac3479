"""`hlscore check`: hold plans against rules, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hlscore.artifacts.files import check_folder, write_files
from hlscore.cli import options as o
from hlscore.errors import EXIT_CHECK_FAILED, UsageError
from hlscore.settings import CheckSettings, option, refuse_both
from hlscore.views.progress import status

Format = Literal["text", "json", "github", "junit", "sarif"]


@o.command()
def check(
    settings: Annotated[o.Given, o.Options(CheckSettings)],
    plans: tuple[Path, ...] = option(
        (), "Plans; those of the configuration if none is named.", argument=True
    ),
    config: Path | None = option(
        None,
        "TOML file with the keys `plans` and any option that says what is checked.",
        "Options",
        default="hlscore-check.toml, or [tool.hlscore.check] of pyproject.toml",
    ),
    explain: str | None = option(
        None, "Say what a code asks for; all: every code.", "Options", metavar="CODE"
    ),
    form: Format | None = option(
        None, "Format of the result.", name="format", default="text; json with --json"
    ),
    out: Path | None = option(
        None, "File for the result; standard output then has text.", short="o"
    ),
    as_json: bool = o.JSON,
) -> None:
    """Check plans: are they whole, within budget, and what the rules of a repository ask for?

    Exit status: 0 passed, 1 failed, 2 wrong usage, 3 could not run.

    **Examples**

    - `hlscore check hlscore-out/builtin-tiny/plan.json`
    - `hlscore check plan.json --model Qwen/Qwen3-8B --for peft --for axolotl`
    - `hlscore check plan.json --baseline main.json --max-changed 5% --min-tau 0.6 --format github`
    - `hlscore check --explain HLS403`
    """
    from hlscore.artifacts.plan_file import start_of_artifact
    from hlscore.checks.configuration import PLANS, read_configuration
    from hlscore.checks.rule import RULES
    from hlscore.checks.run import check_plan, check_settings, find_rule
    from hlscore.views import check_formats
    from hlscore.views.check import check_json, check_text, print_check, print_rules

    if explain is not None:
        rules = tuple(RULES.values()) if explain == "all" else (find_rule(explain),)
        print_rules(rules, as_json=as_json)
        return
    refuse_both("--format", "--json", as_json and form not in (None, "json"))
    kept = read_configuration(config)
    configured = tuple(Path(plan) for plan in kept.pop(PLANS, ()))
    files = plans or configured
    if not files:
        raise UsageError("No plan is named.", hint="Give one, or `plans` in the configuration.")
    asked = CheckSettings(**kept | settings)  # the command line comes before the configuration
    check_settings(asked)
    for file in files:
        if file.suffix.lower() != ".json":  # a damaged plan is a finding
            start_of_artifact(file)
    with status("checking"):
        results = [check_plan(file, asked) for file in files]
    writers = {
        "text": check_text,
        "json": check_json,
        "github": check_formats.github,
        "junit": check_formats.junit,
        "sarif": check_formats.sarif,
    }
    form = "json" if as_json else form or "text"
    if out is not None:
        check_folder(out.parent, (out.name,), force=True)
        write_files(out.parent, {out.name: writers[form](results)})
    if form == "text" or out is not None:
        print_check(results)
    else:
        print(writers[form](results), end="")
    if not all(result.passed for result in results):
        raise typer.Exit(EXIT_CHECK_FAILED)
