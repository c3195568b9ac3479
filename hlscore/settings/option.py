"""One definition of each option, read by the command line, the Python API and printed commands.

A field of a settings class that is an `option` is a flag of the commands that take the class, a
keyword of `hlscore.rank`, a value in plan and report, and a word in the commands printed next.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hlscore.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """What a setting is described as, allowed to be, and called on the command line."""

    help: str
    panel: str = ""  # group of options in the help of a command
    _: KW_ONLY
    name: str = ""  # on the command line, without dashes; by default that of the field
    short: str = ""  # one letter
    # Smallest and largest value; `above` and `below` are not allowed themselves.
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    step: int = 1  # distance of allowed whole numbers from `low` on
    hint: str = ""  # what to do about a value outside; by default the range
    # Text for a default that depends on other options: not given then means `None`, and the class
    # fills it in.
    default: str = ""
    metavar: str | None = None
    argument: bool = False  # stands on the command line without a name
    parse: Callable[[Any, str], Any] | None = None  # reads the text; second argument: the flag

    @property
    def range(self) -> str:
        """The range in words."""
        if self.hint:
            return self.hint
        if self.low > -math.inf:
            to = f"to {self.high:.15g}" if self.high < math.inf else "or more"
            return f"Use {self.low:.15g} {to}."
        if self.above > -math.inf:
            below = f" and at most {self.high:g}" if self.high < math.inf else ""
            return f"Use a number above {self.above:g}{below}."
        return "Use a number."


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of a settings class, or a parameter of a command, with its option."""

    name: str
    type: Any  # without `None` where it is optional
    optional: bool
    default: Any  # `MISSING` where it has to be given
    option: Option  # without a help text where the field is no option
    flag: str  # its name on the command line
    choices: tuple[Any, ...]  # the values to choose from; empty where any of its type may be

    def read(self, typed: Any) -> Any:
        """The value of a text, of several, or of a switch of the command line; checked."""
        option, several = self.option, isinstance(typed, list)
        if option.parse is not None:
            value = option.parse(typed, self.flag)
        elif self.choices:
            value = {str(each): each for each in self.choices}.get(typed, typed)
        else:
            kind, values = get_args(self.type)[0] if several else self.type, []
            for text in typed if several else [typed]:
                try:
                    values.append(kind(text))
                except ValueError:
                    wrong = f"{self.flag} is '{text}'."
                    raise UsageError(wrong, hint=option.range) from None
            value = tuple(values) if several else values[0]
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Refuse a value outside the choices or the range of the option."""
        option = self.option
        if value is None and self.optional:
            return
        if self.choices:
            require(
                value in self.choices,
                f"{self.flag} is '{value}'.",
                f"Use one of: {', '.join(map(str, self.choices))}.",
            )
        elif self.type is bool:
            require(isinstance(value, bool), f"{self.flag} is {value!r}.", "Use True or False.")
        elif isinstance(self.default, Mapping):
            example = f'For example {self.name}={{"prompt": "text"}}.'
            require(isinstance(value, Mapping), f"{self.name} is no mapping.", example)
        elif get_origin(self.type) is tuple:
            kind = get_args(self.type)[0]
            what = {int: "whole numbers", float: "numbers"}.get(kind, "texts")
            for each in value:
                require(_is_a(each, kind), f"{self.flag} holds {each!r}.", f"Give {what}.")
        elif self.type in (int, float):
            allowed = (
                _is_a(value, self.type)
                and math.isfinite(value)
                and option.low <= value <= option.high
                and option.above < value < option.below
                and (option.step == 1 or (value - option.low) % option.step == 0)
            )
            if not allowed:
                shown = f"{value:g}" if isinstance(value, float) else repr(value)
                raise UsageError(f"{self.flag} is {shown}.", hint=option.range)


def _is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; whole numbers are numbers too, and no switch is one."""
    return isinstance(value, int | float if kind is float else kind) and (
        kind is bool or not isinstance(value, bool)
    )


def option(value: Any, text: str, panel: str = "", /, **more: Any) -> Any:
    """A field of a settings class, or a parameter of a command, with a default and an `Option`.

    Without a default it is `MISSING`. Its group in the help is the `panel` of the class, or that of
    the output, unless another one is given.
    """
    metadata = {"option": Option(text, panel, **more)}
    if isinstance(value, dict):
        return field(default_factory=value.copy, metadata=metadata)
    return field(default=value, metadata=metadata)


@cache
def parts_of(kind: Any) -> dict[str, Setting | type]:
    """What the fields of a settings class hold: a setting, or settings of a class of their own."""
    found: dict[str, Setting | type] = {}
    hints = get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            found[item.name] = hints[item.name]
            continue
        panel = getattr(kind, "panel", "")
        found[item.name] = setting_of(item.name, hints[item.name], item, panel)
    return found


@cache
def settings_in(kind: Any) -> dict[str, Setting]:
    """Options of a settings class and of the classes that its fields hold, by name."""
    found: dict[str, Setting] = {}
    for name, part in parts_of(kind).items():
        if not isinstance(part, Setting):
            found |= settings_in(part)
        elif part.option.help:
            found[name] = part
    return found


def setting_of(name: str, hint: Any, item: Field[Any], panel: str) -> Setting:
    """The setting that a field of a settings class, or a parameter of a command, stands for."""
    option, default = item.metadata.get("option", Option("")), item.default
    option = replace(option, panel=option.panel or panel)
    if item.default_factory is not MISSING:
        default = item.default_factory()
    optional = get_origin(hint) in (Union, types.UnionType) and types.NoneType in get_args(hint)
    if optional:
        (hint,) = (arm for arm in get_args(hint) if arm is not types.NoneType)
    return Setting(
        name=name,
        type=hint,
        optional=optional,
        default=default,
        option=option,
        flag=f"--{option.name or name.replace('_', '-')}",
        choices=get_args(hint) if get_origin(hint) is Literal else (),
    )


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Settings, and those within them, from values by name; the others have their defaults."""
    return kind(**{
        name: values[name] if isinstance(part, Setting) else build(part, values)
        for name, part in parts_of(kind).items()  # type: ignore[arg-type]
        if name in values or not isinstance(part, Setting)
    })  # fmt: skip


def require(condition: bool, message: str, hint: str = "") -> None:
    """Refuse settings unless a condition holds."""
    if not condition:
        raise UsageError(message, hint=hint)


def parse_pairs(
    texts: Sequence[str], flag: str, *, form: str, example: str, twice: str
) -> dict[str, str]:
    """Values by name, from `NAME=VALUE` texts; `form`, `example` and `twice` are for errors."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise UsageError(f"{flag} '{text}' is not {form}.", hint=f"For example {example}.")
        if name in found:
            raise UsageError(
                f"{flag} maps '{name}' twice: to '{found[name]}' and to '{value}'.", hint=twice
            )
        found[name] = value
    return found


def refuse_both(first: str, second: str, both: bool) -> None:
    """Refuse two options if both are given."""
    require(not both, f"{first} and {second} are mutually exclusive.", "Remove one of them.")


def check(settings: Any) -> None:
    """Refuse settings with a value outside the choices or the range of its option."""
    for name, part in parts_of(type(settings)).items():  # type: ignore[arg-type]
        if isinstance(part, Setting):
            part.check(getattr(settings, name))


def changed(settings: Any, *beside: str) -> list[str]:
    """Names of the settings that differ from their defaults, except those `beside`."""
    return [
        name
        for name, part in parts_of(type(settings)).items()  # type: ignore[arg-type]
        if name not in beside
        and isinstance(part, Setting)
        and getattr(settings, name) != part.default
    ]


def flag_of(kind: type, name: str) -> str:
    """The flag that gives a field of settings."""
    return settings_in(kind)[name].flag


def arguments(kind: type, values: Mapping[str, Any], *, without: Iterable[str] = ()) -> list[str]:
    """Words of a command line that give settings again; those with their default are left out.

    Args:
        values: Values as plain data, nested as the class is; missing ones have their default.
    """
    words: list[str] = []
    left_out = set(without)
    for name, part in parts_of(kind).items():
        if not isinstance(part, Setting):
            words += arguments(part, values.get(name) or {}, without=left_out)
            continue
        option, flag, value = part.option, part.flag, values.get(name, part.default)
        value = tuple(value) if isinstance(value, list) else value
        unsaid = not option.help or option.argument or name in left_out
        if unsaid or value in (part.default, None):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        if isinstance(value, Mapping):
            texts = [f"{key}={each}" for key, each in value.items()]
        elif isinstance(value, tuple):
            texts = [str(each) for each in value]
            texts = texts if option.parse is None else [",".join(texts)]
        else:
            texts = [f"{value:g}" if isinstance(value, float) else str(value)]
        words += [word for text in texts for word in (flag, text)]
    return words
