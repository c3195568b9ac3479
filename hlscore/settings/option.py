"""One definition of each option, read by the command line, the Python API and printed commands.

A field of a settings class that carries an `Option` is a flag of the commands that take the class,
a keyword of `hlscore.rank`, a value in plan and report, and a word in the commands printed next.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hlscore.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """What a field of settings is called, allowed to be, and described as.

    Attributes:
        help: Help text.
        panel: Group of options in the help of a command.
        name: Name on the command line without dashes; by default that of the field.
        short: One letter.
        low: Smallest value.
        high: Largest value.
        above: Value that must be exceeded.
        below: Value that must not be reached.
        step: Distance of allowed whole numbers from `low` on.
        hint: What to do about a value outside; by default the range.
        default: Text for a default that depends on other options. Not given then means `None`,
            and the class fills it in.
        metavar: Placeholder of the value.
        argument: Whether it stands on the command line without a name.
        parse: Reads the text of the command line, with the flag as second argument.
    """

    help: str
    panel: str = ""
    _: KW_ONLY
    name: str = ""
    short: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    step: int = 1
    hint: str = ""
    default: str = ""
    metavar: str | None = None
    argument: bool = False
    parse: Callable[[Any, str], Any] | None = None

    def outside(self, value: float) -> bool:
        """Whether a number is not allowed."""
        return (
            not math.isfinite(value)
            or (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
            or (self.step > 1 and (value - (self.low or 0)) % self.step != 0)
        )

    @property
    def range(self) -> str:
        """The range in words."""
        if self.hint:
            return self.hint
        low = self.low if self.above is None else self.above
        high = self.high if self.below is None else self.below
        if low is None or high is None:
            if low is None:
                return "Use a number."
            return f"Use {low:g} or more." if self.above is None else f"Use a number above {low:g}."
        if self.above is None and self.below is None:
            return f"Use {low:.15g} to {high:.15g}."
        upper = f"at most {high:g}" if self.below is None else f"below {high:g}"
        lower = f"above {low:g}" if self.low is None else f"at least {low:g}"
        return f"Use a number {lower} and {upper}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of settings with its option.

    Attributes:
        name: Name of the field.
        type: Its type, without `None` where it is optional.
        optional: Whether it may be `None`.
        default: Its default; `MISSING` where it has to be given.
        option: How it is given; `None` where no option gives it.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    option: Option | None

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        named = self.option.name if self.option is not None else ""
        return f"--{named or self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values to choose from; empty where any of its type may be."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def check(self, value: Any) -> None:
        """Refuse a value outside the choices or the range of the option."""
        if value is None and self.optional:
            return
        if self.choices:
            require(
                value in self.choices,
                f"{self.flag} is '{value}'.",
                f"Use one of: {', '.join(map(str, self.choices))}.",
            )
        elif self.option is not None and self.type in (int, float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or self.option.outside(value):
                shown = f"{value:g}" if isinstance(value, float) else repr(value)
                raise UsageError(f"{self.flag} is {shown}.", hint=self.option.range)


@cache
def settings_in(kind: Any) -> dict[str, Setting]:
    """Settings of a class and of the classes that its fields hold, by name."""
    found: dict[str, Setting] = {}
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint = hints[item.name]
        if is_dataclass(hint):
            found |= settings_in(hint)  # type: ignore[arg-type]
        else:
            found[item.name] = setting_of(item.name, hint, default_of(item))
    return found


def setting_of(name: str, hint: Any, default: Any) -> Setting:
    """The setting that a field or a parameter stands for, by its annotation."""
    option = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        option = next((extra for extra in extras if isinstance(extra, Option)), None)
    optional = get_origin(hint) in (Union, types.UnionType) and types.NoneType in get_args(hint)
    if optional:
        (hint,) = (arm for arm in get_args(hint) if arm is not types.NoneType)
    return Setting(name=name, type=hint, optional=optional, default=default, option=option)


def default_of(item: Field[Any]) -> Any:
    """Default of a field of a dataclass; `MISSING` where it has to be given."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make settings, and those within them, from values by name; the others have their defaults.

    Args:
        values: Values by name, as `settings_in` names them.
    """
    hints = get_type_hints(kind)
    given = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(hints[item.name]):
            given[item.name] = build(hints[item.name], values)
        elif item.name in values:
            given[item.name] = values[item.name]
    return kind(**given)


def require(condition: bool, message: str, hint: str = "") -> None:
    """Refuse settings unless a condition holds."""
    if not condition:
        raise UsageError(message, hint=hint)


def check(settings: Any) -> None:
    """Refuse settings with a value outside the choices or the range of its option."""
    known = settings_in(type(settings))  # type: ignore[arg-type]
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        if is_dataclass(hints[item.name]):
            continue
        known[item.name].check(getattr(settings, item.name))


def changed(settings: Any, *beside: str) -> list[str]:
    """Names of the fields of settings that differ from their defaults, except those `beside`."""
    return [
        item.name
        for item in fields(settings)
        if item.name not in beside and getattr(settings, item.name) != default_of(item)
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
    known, left_out, hints = settings_in(kind), set(without), get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            words += arguments(hints[item.name], values.get(item.name) or {}, without=left_out)
            continue
        setting = known[item.name]
        value = values.get(item.name, setting.default)
        value = tuple(value) if isinstance(value, list) else value
        option = setting.option
        if option is None or option.argument or value == setting.default or item.name in left_out:
            continue
        if isinstance(value, bool):
            words.append(setting.flag if value else setting.flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [
                word for key, each in value.items() for word in (setting.flag, f"{key}={each}")
            ]
        elif isinstance(value, tuple) and option.parse is not None:
            words += [setting.flag, ",".join(map(str, value))]
        elif isinstance(value, tuple):
            words += [word for each in value for word in (setting.flag, str(each))]
        elif value is not None:
            words += [setting.flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
