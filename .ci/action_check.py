"""Last step of the Action: checks the plans and says what it found in every form that is asked."""

from __future__ import annotations

import io
import json
import secrets
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from action_inputs import (
    EXIT_COULD_NOT_RUN,
    EXIT_USAGE,
    InputError,
    append,
    given,
    given_args,
    given_plans,
    print_error,
    print_text,
)
from action_summary import could_not_run, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run of the command came to.

    Attributes:
        code: Its exit status.
        out: What it printed.
        error: What it printed to standard error.
    """

    code: int
    out: str
    error: str

    @property
    def has_result(self) -> bool:
        """Whether the plans were checked, whatever was found."""
        return self.code in (0, 1)


def main() -> int:
    """Check; write annotations, files and summary; then pass on how the check ended.

    Returns:
        The exit status of `hlscore check`.
    """
    try:
        asked = _asked()
    except InputError as error:
        return _fail(EXIT_USAGE, str(error))
    with TemporaryDirectory() as folder:
        annotations = Path(folder) / "annotations"
        first = _check("github", annotations, asked)
        if not first.has_result:
            return _fail(first.code, first.error)
        _print_untrusted(first.out)
        print_text(annotations.read_text(encoding="utf-8"))
        found = Path(folder) / "found.json"
        files = {form: given(f"{form}-file") for form in ("sarif", "junit")}
        outs = {"json": found} | {form: Path(file) for form, file in files.items() if file}
        for form, out in outs.items():
            run = _check(form, out, asked)
            if not run.has_result:
                return _fail(run.code, run.error)
        append("GITHUB_STEP_SUMMARY", summary(json.loads(found.read_text(encoding="utf-8"))))
    return first.code


def _asked() -> list[str]:
    """The command line that the inputs ask for, without form and place of the result."""
    options = [
        f"--{name}={value}" for name in ("config", "baseline", "model") if (value := given(name))
    ]
    options += [f"--for={name}" for name in given("for").replace(",", " ").split()]
    return [*options, *given_args(), "--", *given_plans()]


def _check(form: str, out: Path, asked: list[str]) -> Outcome:
    """Run the command in this process: with a model, only the first run has much to import."""
    from hlscore.cli.main import main as command

    output, error = io.StringIO(), io.StringIO()
    words = ["hlscore", "check", f"--format={form}", f"--out={out}", *asked]
    code: object = EXIT_COULD_NOT_RUN
    # Colours are forced in GitHub's runner, but not in a terminal that has none.
    plain = patch.dict("os.environ", TERM="dumb")
    with plain, patch("sys.argv", words), redirect_stdout(output), redirect_stderr(error):
        try:
            command()
        except SystemExit as stop:
            code = stop.code or 0
    return Outcome(
        code=code if isinstance(code, int) else EXIT_COULD_NOT_RUN,
        out=output.getvalue(),
        error=error.getvalue(),
    )


def _print_untrusted(text: str) -> None:
    """Print text in which GitHub must not see commands."""
    token = secrets.token_hex(16)
    print_text(f"::stop-commands::{token}\n{text.rstrip()}\n::{token}::\n")


def _fail(code: int, message: str) -> int:
    lines = (line.strip() for line in message.removeprefix("error: ").splitlines())
    message = "\n".join(filter(None, lines))
    print_error(message)
    append("GITHUB_STEP_SUMMARY", could_not_run(message))
    return code


if __name__ == "__main__":
    sys.exit(main())
