"""Options of commands: made from settings, and those of the output that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hlscore.settings import MODEL_PANEL, Setting, build, settings_in

OUTPUT_PANEL = "Output"

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder for the results.",
        show_default="hlscore-out/<model>",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace existing results.", rich_help_panel=OUTPUT_PANEL),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON for scripts.", rich_help_panel=OUTPUT_PANEL
    ),
]
Top = Annotated[
    int,
    typer.Option(
        "--top", min=1, help="Modules to show in the table.", rich_help_panel=OUTPUT_PANEL
    ),
]
BaseModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="Base model that the training started from: hub id or directory.",
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Options:
    """Which options a parameter of a command stands for.

    In `Annotated[PlanSettings, Options()]` the parameter receives the settings; in
    `Annotated[Given, Options(PlanSettings)]` only what was typed, by name of the field.

    Attributes:
        kind: Class of settings; by default the type of the parameter.
        only: Fields that become options; empty means all.
        without: Fields that do not.
        defaults: Texts for defaults that this command fills in.
        helps: Help texts that differ in this command.
    """

    kind: type | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    helps: Mapping[str, str] = field(default_factory=dict)

    def chosen(self, kind: type) -> dict[str, Setting]:
        """The settings that become options."""
        return {
            name: setting
            for name, setting in settings_in(kind).items()
            if setting.option is not None
            and (not self.only or name in self.only)
            and name not in self.without
        }


Given = dict[str, Any]


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Turn each parameter of a command that is annotated with `Options` into those options."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Any, dict[str, Setting]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        options = next((each for each in _extras(hint) if isinstance(each, Options)), None)
        if options is None:
            parameters.append(
                parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
            )
            continue
        kind = get_args(hint)[0]
        chosen = options.chosen(options.kind or kind)
        groups[parameter.name] = (kind, chosen)
        parameters += [
            _parameter(setting, options, given=kind is Given) for setting in chosen.values()
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        for name, (kind, chosen) in groups.items():
            given = dict(_read(chosen, {key: values.pop(key) for key in chosen}))
            if kind is Given:
                values[name] = given
            else:
                values[name] = kind.of(given) if hasattr(kind, "of") else build(kind, given)
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _extras(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _parameter(setting: Setting, options: Options, *, given: bool) -> inspect.Parameter:
    """The option of a setting, as typer reads it."""
    option = setting.option
    assert option is not None  # noqa: S101 - `chosen` holds none without
    text = options.helps.get(setting.name, option.help)
    shown = options.defaults.get(setting.name, option.default)
    kind: Any = setting.type
    if option.parse is not None:
        kind = list[str] if isinstance(setting.default, Mapping) else str
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    elif any(isinstance(choice, int) for choice in setting.choices):
        kind = Literal[tuple(map(str, setting.choices))]
    several = get_origin(kind) is list
    default: Any = setting.default
    if given and not shown and isinstance(default, str | int | float) and kind is not bool:
        shown = str(default)
    if several:
        default = []
    elif given or shown or option.parse is not None:
        default = None
    elif isinstance(kind, type(Literal[1])) and default is not None:
        default = str(default)
    if default is None:
        kind = Union[kind, NoneType]  # noqa: UP007 - the type is made here
    if option.argument:
        info: Any = typer.Argument(help=text, show_default=False)
    else:
        flag = setting.flag
        on_off = setting.type is bool and setting.default is True
        info = typer.Option(
            f"{flag}/{flag.replace('--', '--no-', 1)}" if on_off else flag,
            *((f"-{option.short}",) if option.short else ()),
            help=text,
            rich_help_panel=option.panel,
            metavar=option.metavar,
            show_default=shown or (default is not None and not several),
        )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if setting.default is MISSING else default,
        annotation=Annotated[kind, info],
    )


def _read(chosen: Mapping[str, Setting], values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What was typed, in the types of the settings."""
    for name, setting in chosen.items():
        value, option = values[name], setting.option
        if value is None or value == [] or option is None:
            continue
        if option.parse is not None:
            value = option.parse(value, setting.flag)
        elif isinstance(value, list):
            value = tuple(value)
        elif setting.choices and value not in setting.choices:
            value = next(choice for choice in setting.choices if str(choice) == value)
        yield name, value
