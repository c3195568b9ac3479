"""Options of commands: their own, those of settings classes, and those that several share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, replace
from functools import partial, wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from hlscore.errors import UsageError
from hlscore.settings import DEFAULT_SAMPLES, Setting, build, option, setting_of, settings_in

OUTPUT = "Output"
OUT = option(None, "Folder for the results.", OUTPUT, short="o", default="hlscore-out/<model>")
FORCE = option(False, "Replace existing results.", OUTPUT)
JSON = option(False, "Print the result as JSON for scripts.", OUTPUT, name="json")
TOP_HELP = "Modules to show in the table; 0 or all for every one."
# Data of commands without --objective.
SUPERVISED: dict[str, dict[str, str]] = {
    "data": {
        "help": "Hub id, .jsonl .json .csv .parquet .arrow file, directory, builtin:new or "
        "builtin:known.",
        "default": "builtin:new",
    },
    "columns": {
        "help": "Map a column, such as prompt=question (roles: text, messages, prompt, completion, "
        "...; repeatable)."
    },
    "samples": {"help": "Examples to draw; 0 means all.", "default": str(DEFAULT_SAMPLES)},
    "max_length": {"default": "1024, or the context if smaller"},
}
Given = dict[str, Any]


def modules_to_show(text: str, flag: str) -> int:
    """A number of modules; 0 or `all`: every one."""
    if text != "all" and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{flag} is '{text}'.", hint="Use a number of modules, or all.")
    return (0 if text == "all" else int(text)) or sys.maxsize


TOP = option(15, TOP_HELP, OUTPUT, metavar="<int>", parse=modules_to_show)


class Options:
    """Which fields of a settings class a parameter of a command stands for.

    In `Annotated[PlanSettings, Options()]` the parameter receives the settings; in
    `Annotated[Given, Options(PlanSettings)]` only what was typed, by name of the field.

    Args:
        kind: Class of settings; by default the type of the parameter.
        only: Fields that become options; by default all of them but those of `without`.
        **changes: What the option of a field has here in place of what the class says.
    """

    def __init__(
        self,
        kind: type | None = None,
        *,
        only: Iterable[str] = (),
        without: Iterable[str] = (),
        **changes: Mapping[str, Any],
    ) -> None:
        self.kind, self.only, self.without, self.changes = kind, only, without, changes


def command(panel: str = OUTPUT) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command for typer of a function.

    A parameter whose default is an `option(...)` is an option of the command; one that is annotated
    with `Options` stands for fields of a settings class.

    Args:
        panel: Group in the help of the options that name none.
    """
    return partial(_command, panel=panel)


def _command(function: Callable[..., None], panel: str) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    every: dict[str, Setting] = {}
    own: dict[str, Setting] = {}
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            own[name] = setting_of(name, hints[name], parameter.default, panel)
            every[name] = own[name]
            continue
        kind, options = get_args(hints[name])
        chosen = {
            each: replace(setting, option=replace(setting.option, **options.changes.get(each, {})))
            for each, setting in settings_in(options.kind or kind).items()
            if each in (options.only or [each]) and each not in options.without
        }
        groups[name] = kind, list(chosen)
        every |= chosen

    @wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        typed = {
            name: every[name].read(value)
            for name, value in values.items()
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        }
        found = {name: typed.get(name, setting.default) for name, setting in own.items()}
        for name, (kind, members) in groups.items():
            given = {each: typed[each] for each in members if each in typed}
            # Some settings have a constructor of their own: what was typed decides about the rest.
            make = getattr(kind, "of", partial(build, kind))
            found[name] = given if kind is Given else make(given)
        function(**found)

    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *map(_parameter, every.values()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameter(setting: Setting) -> inspect.Parameter:
    """The option of a setting, as typer reads it."""
    own, default = setting.option, setting.default
    # Numbers reach `Setting.read` as texts: it says in the words of the option what is wrong.
    kind: Any = setting.type if setting.type in (bool, Path) else str
    held, several = setting.type, False
    if isinstance(default, Mapping):
        kind, several = list[str], True
    elif get_origin(held) is tuple and own.parse is None:
        (held, *_), several = get_args(held), True
        kind = list[Path] if held is Path else list[str]
    metavar = own.metavar
    if setting.choices:
        metavar = f"<{'|'.join(map(str, setting.choices))}>"
    elif not (metavar or own.parse) and held in (int, float):
        metavar = f"<{held.__name__}>"
    if default is MISSING:
        default = inspect.Parameter.empty
    elif several or own.default or default in (None, ()):
        default, kind = None, Union[kind, NoneType]  # noqa: UP007 - the type is made here
    elif kind is str:
        default = f"{default:g}" if isinstance(default, float) else str(default)
    if own.argument:
        metavar = metavar or setting.name.upper()
        info: Any = typer.Argument(help=own.help, show_default=False, metavar=metavar)
    else:
        flag = setting.flag
        on_off = setting.type is bool and setting.default is True
        info = typer.Option(
            f"{flag}/{flag.replace('--', '--no-', 1)}" if on_off else flag,
            *((f"-{own.short}",) if own.short else ()),
            help=own.help,
            rich_help_panel=own.panel,
            metavar=metavar,
            show_default=own.default or default is not None,
        )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=default,
        annotation=Annotated[kind, info],
    )  # fmt: skip
