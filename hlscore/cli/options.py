"""Options of commands: made from settings, and those of the output that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from hlscore.errors import UsageError
from hlscore.settings import MODEL_PANEL, Option, Setting, build, setting_of, settings_in

OUTPUT_PANEL = "Output"

Out = Annotated[
    Path | None,
    Option("Folder for the results.", OUTPUT_PANEL, short="o", default="hlscore-out/<model>"),
]
Force = Annotated[bool, Option("Replace existing results.", OUTPUT_PANEL)]
Json = Annotated[bool, Option("Print the result as JSON for scripts.", OUTPUT_PANEL, name="json")]
Top = Annotated[int, Option("Modules to show in the table.", OUTPUT_PANEL, low=1)]
BaseModel = Annotated[
    str, Option("Base model that the training started from: hub id or directory.", MODEL_PANEL)
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
    """Give a command the options that its parameters are annotated with.

    A parameter that is annotated with an `Option` is one; with `Options` it stands for several.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Any, dict[str, Setting]]] = {}
    own: dict[str, Setting] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *extras = get_args(hints[name])
        options = next((each for each in extras if isinstance(each, Options)), None)
        if options is None:
            missing = parameter.default is inspect.Parameter.empty
            own[name] = setting_of(name, hints[name], MISSING if missing else parameter.default)
            parameters.append(_parameter(own[name], Options(), given=False))
            continue
        chosen = options.chosen(options.kind or kind)
        groups[name] = (kind, chosen)
        parameters += [
            _parameter(setting, options, given=kind is Given) for setting in chosen.values()
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        found = dict(_read(own, values))
        for name, value in found.items():
            own[name].check(value)
        for name, (kind, chosen) in groups.items():
            given = dict(_read(chosen, values))
            if kind is Given:
                found[name] = given
            else:
                found[name] = kind.of(given) if hasattr(kind, "of") else build(kind, given)
        command(**found)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameter(setting: Setting, options: Options, *, given: bool) -> inspect.Parameter:
    """The option of a setting, as typer reads it."""
    option = setting.option
    assert option is not None  # noqa: S101 - all that come here have one
    text = options.helps.get(setting.name, option.help)
    shown = options.defaults.get(setting.name, option.default)
    # Texts reach `_read`, which says what is wrong with one in the words of the option.
    kind: Any = setting.type if setting.type in (bool, Path) else str
    several = get_origin(setting.type) is tuple and option.parse is None
    if several or isinstance(setting.default, Mapping):
        kind, several = list[Path] if setting.type == tuple[Path, ...] else list[str], True
    metavar = option.metavar
    if setting.choices:
        metavar = f"<{'|'.join(map(str, setting.choices))}>"
    elif option.parse is None and not option.metavar:
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
            rich_help_panel=option.panel,
            metavar=metavar,
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
        value, option = values.get(name), setting.option
        if value is None or value == [] or option is None:
            continue
        if option.parse is not None:
            value = option.parse(value, setting.flag)
        elif isinstance(value, list):
            kind = get_args(setting.type)[0]
            value = tuple(_number(setting, each) if kind is float else each for each in value)
        elif setting.choices:
            value = next((each for each in setting.choices if str(each) == value), value)
            setting.check(value)
        elif setting.type in (int, float):
            value = _number(setting, value)
        yield name, value


def _number(setting: Setting, text: str) -> float:
    assert setting.option is not None  # noqa: S101
    try:
        return int(text) if setting.type is int else float(text)
    except ValueError:
        raise UsageError(f"{setting.flag} is '{text}'.", hint=setting.option.range) from None
