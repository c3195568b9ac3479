"""Options of commands: made from settings, and those of the output that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from hlscore.errors import UsageError
from hlscore.settings import Option, Setting, build, setting_of, settings_in

OUTPUT_PANEL = "Output"

Out = Annotated[
    Path | None, Option("Folder for the results.", short="o", default="hlscore-out/<model>")
]
Force = Annotated[bool, Option("Replace existing results.")]
Json = Annotated[bool, Option("Print the result as JSON for scripts.", name="json")]
Top = Annotated[int, Option("Modules to show in the table.", low=1)]
Given = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """Which options a parameter of a command stands for.

    In `Annotated[PlanSettings, Options()]` the parameter receives the settings; in
    `Annotated[Given, Options(PlanSettings)]` only what was typed, by name of the field.
    """

    kind: type | None = None  # class of settings; by default the type of the parameter
    only: tuple[str, ...] = ()  # fields that become options; empty means all
    without: tuple[str, ...] = ()  # fields that do not
    defaults: Mapping[str, str] = field(default_factory=dict)  # texts for those filled in here
    helps: Mapping[str, str] = field(default_factory=dict)  # help texts of this command
    panel: str = ""  # group of those whose settings name none


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that its parameters are annotated with: `Option` or `Options`."""
    hints = get_type_hints(command, include_extras=True)
    every: dict[str, Setting] = {}
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *extras = get_args(hints[name])
        options = next((each for each in extras if isinstance(each, Options)), None)
        if options is None:
            missing = parameter.default is inspect.Parameter.empty
            chosen = {
                name: setting_of(name, hints[name], MISSING if missing else parameter.default)
            }
            options = Options(panel=OUTPUT_PANEL)
        else:
            chosen = {
                each: setting
                for each, setting in settings_in(options.kind or kind).items()
                if setting.option is not None
                and (not options.only or each in options.only)
                and each not in options.without
            }
            groups[name] = (kind, list(chosen))
        every |= chosen
        given = kind is Given or hasattr(kind, "of")  # what was typed decides what it means
        parameters += [_parameter(setting, options, given=given) for setting in chosen.values()]

    @wraps(command)
    def run(**values: Any) -> None:
        found: dict[str, Any] = {}
        for name, value in values.items():
            setting, option = every[name], every[name].option
            if value is None or value == [] or option is None:
                continue
            if option.parse is not None:
                found[name] = option.parse(value, setting.flag)
            elif setting.choices:
                found[name] = {str(each): each for each in setting.choices}.get(value, value)
            else:
                several = isinstance(value, list)
                kind = get_args(setting.type)[0] if several else setting.type
                read = []
                for text in value if several else [value]:
                    try:
                        read.append(kind(text) if kind in (int, float) else text)
                    except ValueError:
                        wrong = f"{setting.flag} is '{text}'."
                        raise UsageError(wrong, hint=option.range) from None
                found[name] = tuple(read) if several else read[0]
            setting.check(found[name])
        for name, (kind, members) in groups.items():
            typed = {each: found.pop(each) for each in members if each in found}
            if kind is not Given:
                typed = kind.of(typed) if hasattr(kind, "of") else build(kind, typed)
            found[name] = typed
        command(**found)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameter(setting: Setting, options: Options, *, given: bool) -> inspect.Parameter:
    """The option of a setting, as typer reads it.

    Args:
        given: Whether the command receives only what was typed.
    """
    option = setting.option
    assert option is not None  # noqa: S101 - all that come here have one
    text = options.helps.get(setting.name, option.help)
    shown = options.defaults.get(setting.name, option.default)
    # Numbers reach `run` as texts: it says what is wrong with one in the words of the option.
    kind: Any = setting.type if setting.type in (bool, Path) else str
    several = get_origin(setting.type) is tuple and option.parse is None
    if several or isinstance(setting.default, Mapping):
        kind, several = list[Path] if setting.type == tuple[Path, ...] else list[str], True
    metavar = option.metavar
    if setting.choices:
        metavar = f"<{'|'.join(map(str, setting.choices))}>"
    elif option.parse is None and not metavar:
        held = get_args(setting.type)[0] if several else setting.type
        metavar = f"<{held.__name__}>" if held in (int, float) else None
    default: Any = setting.default
    if given and not shown and isinstance(default, str | int | float) and kind is not bool:
        shown = str(default)
    if several:
        default = []
    elif given or shown or option.parse is not None:
        default = None
    elif default is not None and kind is str:
        default = str(default)
    if default is None:
        kind = Union[kind, NoneType]  # noqa: UP007 - the type is made here
    if option.argument:
        if setting.default is MISSING and not several:
            metavar = option.metavar or setting.name.upper()
        info: Any = typer.Argument(help=text, show_default=False, metavar=metavar)
    else:
        flag = setting.flag
        on_off = setting.type is bool and setting.default is True
        info = typer.Option(
            f"{flag}/{flag.replace('--', '--no-', 1)}" if on_off else flag,
            *((f"-{option.short}",) if option.short else ()),
            help=text,
            rich_help_panel=option.panel or options.panel,
            metavar=metavar,
            show_default=shown or (default is not None and not several),
        )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if setting.default is MISSING else default,
        annotation=Annotated[kind, info],
    )
