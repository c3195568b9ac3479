"""The application and its one error boundary."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from hlscore import errors
from hlscore._version import __version__
from hlscore.cli.artifact_commands import plan, report, schema, scores
from hlscore.cli.check_command import check
from hlscore.cli.compare_commands import compare, diff
from hlscore.cli.export_command import export
from hlscore.cli.model_commands import estimate, modules
from hlscore.cli.rank_command import rank
from hlscore.cli.show_command import show
from hlscore.cli.trained_commands import audit, extract_lora, merge
from hlscore.cli.validate_command import validate
from hlscore.processes import leave, started_as, wait_for_main

DEBUG_VARIABLE = "HLSCORE_DEBUG"
# What typer raises for a command line that it cannot read.
_ParsingError: Any = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """Keeps typer from ending Ctrl-C without a message, and a closed pipe with a failure."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except KeyboardInterrupt as error:
            raise errors.Interrupted("Interrupted: nothing was written.") from error
        except SystemExit as stop:
            # rich ends a closed pipe with a failure of its own.
            if isinstance(stop.__context__, BrokenPipeError):
                raise typer.Exit(errors.EXIT_OK) from stop
            raise
        except BrokenPipeError as error:
            # Keep Python from complaining about the pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(errors.EXIT_OK) from error


app = typer.Typer(
    name="hlscore",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    rank, plan, show, report, export, check, diff, compare, modules, estimate, validate, audit,
    extract_lora, merge, scores, schema,
):  # fmt: skip
    app.command()(_command)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"hlscore {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Find the weight matrices that LoRA will serve badly, and plan to train those in full.

    Start with `hlscore rank builtin:tiny --budget 0.1`.
    """


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 check failed, 2 usage, 3 could not run."""
    # Job schedulers end jobs with SIGTERM: the same way out as Ctrl-C, with progress kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = _run()
    if started_as().size > 1:
        leave(code)
    sys.exit(code)


def _run() -> int:
    # A terminal decides about colour and progress; transformers' own advice is not ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A thread of OpenMP that spins while it waits takes a busy core from the one it waits for. This
    # must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every letter
    try:
        return app(prog_name="hlscore", standalone_mode=False) or errors.EXIT_OK
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return _end_with(error)


def _end_with(error: Any) -> int:
    """Print what went wrong and what to do about it; the exit code."""
    message, code = f"Unexpected {type(error).__name__}: {error}", errors.EXIT_COULD_NOT_RUN
    hint = f"This is a bug in hlscore. Set {DEBUG_VARIABLE}=1 for the traceback and report it."
    if isinstance(error, errors.HlscoreError):
        message, hint, code = error.message, error.hint, error.exit_code
        everywhere = (errors.UsageError, errors.ModelError, errors.DataError)
        if isinstance(error, (*everywhere, errors.Interrupted)) and not started_as().is_main:
            if isinstance(error, everywhere):
                wait_for_main()
            return code  # the main process prints it
    elif isinstance(error, _ParsingError):
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return errors.EXIT_USAGE
        command = error.ctx.command_path if error.ctx else "hlscore"
        message, code = error.format_message(), errors.EXIT_USAGE
        hint = f"`{command} --help` describes the options."
    elif isinstance(error, KeyboardInterrupt):
        message, hint, code = "Interrupted.", "", errors.EXIT_INTERRUPTED
    elif isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or errors.EXIT_OK
        message, hint = str(error.code), ""
    elif os.environ.get(DEBUG_VARIABLE):
        raise error
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
        message, hint = f"The output cannot be written: {error.strerror}.", "Free some space."
    from rich.console import Console
    from rich.text import Text

    from hlscore.wording import visible

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), visible(message)))
    if hint:
        console.print(Text.assemble(("  try: ", "bold cyan"), visible(hint)))
    return code
