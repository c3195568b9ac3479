"""Reading and writing `plan.json`; a plan file is untrusted input."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from hlscore.artifacts.plan import SCHEMA_VERSION, Plan, PlanModule
from hlscore.artifacts.plan_upgrade import upgrade
from hlscore.errors import ArtifactError, first_line

LARGEST_BYTES = 256 * 2**20

_DEEPEST = 40
_LARGEST_WHOLE = 2**63 - 1
_LONGEST_QUOTE = 60
# Controls, halves of surrogate pairs, line and paragraph separators, unassigned.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp", "Cn", "Co")
_TURNS_TEXT = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_HINT = "`hlscore rank` and `hlscore plan` write plan.json."


def plan_text(plan: Plan) -> str:
    """Write a plan as indented JSON in the order of the schema."""
    return plan.model_dump_json(indent=2) + "\n"


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file."""
    path.write_text(plan_text(plan), encoding="utf-8")


def read_plan(path: Path | str) -> Plan:
    """Read a plan, of this schema version or an older one.

    Args:
        path: A `plan.json`.

    Returns:
        The plan, in the newest version of the format.

    Raises:
        ArtifactError: There is no such file, or it is no plan that this version reads.
    """
    path = Path(path)
    document = _read_json(path)
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"'{path}' has plan schema {_quoted(version)}; this hlscore reads 1 to "
            f"{SCHEMA_VERSION}.",
            hint="Use the hlscore that wrote it, or plan again.",
        )
    try:
        plan = Plan.model_validate(upgrade(document))
    except (
        ValidationError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
        RecursionError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error
    for fault in _faults(plan):
        raise ArtifactError(f"'{path}' is damaged: {fault}.", hint=_HINT)
    return plan


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"There is no file '{path}'.", hint=_HINT)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ArtifactError(f"'{path}' is larger than any plan.", hint=_HINT)
        document = json.loads(
            path.read_bytes(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates
        )
        _check_values(document)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is not a plan: {first_line(error)}", hint=_HINT) from error
    if not isinstance(document, dict):
        raise ArtifactError(f"'{path}' is not a plan: no JSON object.", hint=_HINT)
    return document


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {_quoted(name)} comes twice in one object")
            seen.add(name)
    return found


def _check_values(document: object) -> None:
    """Refuse texts, numbers and depths that no plan has, wherever they are."""
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                if not _is_readable(value):
                    raise ValueError(f"{_quoted(value)} cannot be printed")
            elif isinstance(value, int):
                if abs(value) > _LARGEST_WHOLE:
                    raise ValueError("it holds a whole number of more than 64 bits")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError("it holds a number too large")
        level = inner
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _is_readable(text: str) -> bool:
    return text.isprintable() or not any(
        unicodedata.category(letter) in _UNPRINTABLE or letter in _TURNS_TEXT for letter in text
    )


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _damaged(path: Path, error: Exception) -> ArtifactError:
    if not isinstance(error, ValidationError):
        return ArtifactError(f"'{path}' is not a plan: {first_line(error)}", hint=_HINT)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return ArtifactError(f"'{path}' is not a plan: at '{place}': {first['msg']}.", hint=_HINT)


def _faults(plan: Plan) -> list[str]:
    """Values that a right type does not exclude and that would break an export."""
    faults, seen = [], set[str]()
    for item in plan.modules:
        if (item.rank is None) != (item.mode != "lora") or (item.rank is None) != (
            item.alpha is None
        ):
            faults.append(f"rank or alpha of '{item.module}' do not go with its mode")
        if item.module in seen:
            faults.append(f"'{item.module}' is listed twice")
        seen.add(item.module)
        if item.parameter not in _weight_names(item):
            faults.append(f"'{item.parameter}' is no weight of '{item.module}'")
    names = [plan.model.name, plan.model.model_type, plan.budget.asked]
    names += [text for item in plan.modules for text in (item.module, item.parameter)]
    names += [text for item in plan.skipped for text in (item.module, item.parameter, item.reason)]
    faults += [f"{_quoted(name)} cannot be printed" for name in names if not name.isprintable()]
    return faults


def _weight_names(item: PlanModule) -> tuple[str, ...]:
    """Names that the weight of a module may have, as `find_modules` gives them."""
    own = f"{item.module}.weight"
    # Experts and bare parameters are named by themselves.
    return (own, item.module) if item.form in ("experts", "parameter") else (own,)
