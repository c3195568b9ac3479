"""How settings refuse a value."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from hlscore.errors import UsageError


def require(condition: bool, message: str, hint: str = "") -> None:
    """Refuse a setting.

    Args:
        condition: What has to hold.
        message: What is wrong where it does not.
        hint: What to do instead.

    Raises:
        UsageError: The condition does not hold.
    """
    if not condition:
        raise UsageError(message, hint=hint)


def require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        option: Name of the option.
        value: As given.
        choices: Values that can be used.
    """
    require(value in choices, f"{option} is '{value}'.", f"Use one of: {', '.join(choices)}.")


def changed(settings: Any, *beside: str) -> list[str]:
    """Name the fields of settings that differ from their defaults.

    Args:
        settings: A dataclass.
        beside: Fields to leave out.

    Returns:
        The names, in order.
    """
    return [
        item.name
        for item in fields(settings)
        if item.name not in beside and getattr(settings, item.name) != _default(item)
    ]


def _default(item: Field[Any]) -> object:
    return item.default if item.default_factory is MISSING else item.default_factory()
