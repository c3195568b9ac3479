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

from hlscore._version import __version__
from hlscore.cli.audit_command import audit
from hlscore.cli.check_command import check
from hlscore.cli.compare_command import compare
from hlscore.cli.diff_command import diff
from hlscore.cli.estimate_command import estimate
from hlscore.cli.export_command import export
from hlscore.cli.modules_command import modules
from hlscore.cli.plan_command import plan
from hlscore.cli.rank_command import rank
from hlscore.cli.report_command import report
from hlscore.cli.schema_command import schema
from hlscore.cli.scores_command import scores
from hlscore.cli.serving_commands import extract_lora, merge
from hlscore.cli.show_command import show
from hlscore.cli.validate_command import validate
from hlscore.errors import (
    EXIT_COULD_NOT_RUN,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    DataError,
    HlscoreError,
    Interrupted,
    ModelError,
    UsageError,
)
from hlscore.processes import started_as
from hlscore.threads import let_waiting_threads_sleep

DEBUG_VARIABLE = "HLSCORE_DEBUG"
# What typer raises for a command line that it cannot read.
_ParsingError: Any = typer.BadParameter.__base__

_FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


class _Commands(TyperGroup):
    """Keeps typer from ending Ctrl-C without a word, and a closed pipe with a failure."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command.

        Raises:
            Exit: The reader of standard output has left.
            SystemExit: A library ends the program.
        """
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            raise Interrupted("Interrupted: nothing was written.") from error
        except SystemExit as stop:
            # rich ends a closed pipe with a failure of its own.
            if isinstance(stop.__context__, BrokenPipeError):
                raise typer.Exit(EXIT_OK) from stop
            raise
        except BrokenPipeError as error:
            # Keep Python from complaining about the pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_OK) from error
        return value


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
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_run())


def _interrupt(number: int, frame: object) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


def _run() -> int:
    # A terminal decides about colour and progress; transformers' own advice is not ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    let_waiting_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can show every letter
    try:
        return app(prog_name="hlscore", standalone_mode=False) or EXIT_OK
    except _ParsingError as error:
        _print_parsing_error(error)
        return EXIT_USAGE
    except HlscoreError as error:
        # What every process finds wrong, the main one says.
        if started_as().is_main or not isinstance(error, (UsageError, ModelError, DataError)):
            _print_error(error.message, error.hint)
        return error.exit_code
    except SystemExit as stop:
        return _exit_code(stop)
    except KeyboardInterrupt:
        _print_error("Interrupted.", "")
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        if isinstance(error, OSError) and error.errno in _FULL:
            _print_error(f"The output cannot be written: {error.strerror}.", "Free some space.")
        else:
            hint = (
                f"This is a bug in hlscore. Set {DEBUG_VARIABLE}=1 for the traceback and report it."
            )
            _print_error(f"Unexpected {type(error).__name__}: {error}", hint)
        return EXIT_COULD_NOT_RUN


def _print_parsing_error(error: Any) -> None:
    """Say which option or argument cannot be read, and where it is described."""
    command = error.ctx.command_path if error.ctx else "hlscore"
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        _print_error(error.format_message(), f"`{command} --help` describes the options.")


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or EXIT_OK
    _print_error(str(stop.code), "")
    return EXIT_COULD_NOT_RUN


def _print_error(message: str, hint: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from hlscore.wording import visible

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), visible(message)))
    if hint:
        console.print(Text.assemble(("  try: ", "bold cyan"), visible(hint)))
