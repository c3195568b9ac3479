"""Reading and writing `plan.json`; a plan file is untrusted input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from hlscore.artifacts.plan import SCHEMA_VERSION, Plan
from hlscore.artifacts.plan_upgrade import upgrade
from hlscore.errors import ArtifactError, first_line

LARGEST_BYTES = 256 * 2**20

_HINT = "`hlscore rank` and `hlscore plan` write plan.json."


def plan_text(plan: Plan) -> str:
    """Write a plan as indented JSON in the order of the schema."""
    return plan.model_dump_json(indent=2) + "\n"


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file."""
    path.write_text(plan_text(plan), encoding="utf-8")


def plan_schema() -> dict[str, object]:
    """JSON Schema of `plan.json`, made from the classes above."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hlscore:plan:{SCHEMA_VERSION}",
    }
    return {**schema, **Plan.model_json_schema()}


def read_plan(path: Path) -> Plan:
    """Read a plan, of this schema version or an older one.

    Args:
        path: A `plan.json`.

    Returns:
        The plan, in the newest version of the format.

    Raises:
        ArtifactError: There is no such file, or it is no plan that this version reads.
    """
    document = _read_json(path)
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"'{path}' has plan schema {version!r}; this hlscore reads 1 to {SCHEMA_VERSION}.",
            hint="Use the hlscore that wrote it, or plan again.",
        )
    try:
        plan = Plan.model_validate(upgrade(document))
    except (ValidationError, ValueError, TypeError, LookupError, AttributeError) as error:
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
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' comes twice in one object")
    return found


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
    names = [plan.model.name, plan.model.model_type, plan.budget.asked]
    names += [text for item in plan.modules for text in (item.module, item.parameter)]
    names += [text for item in plan.skipped for text in (item.module, item.parameter, item.reason)]
    faults += [f"{name!r} cannot be printed" for name in names if not name.isprintable()]
    return faults
