"""Reading and writing `plan.json`; a plan file is untrusted input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hlscore.artifacts.files import check_file
from hlscore.artifacts.json_places import JsonPath, Place
from hlscore.artifacts.json_text import LARGEST_BYTES, parse_json, quoted, syntax_fault
from hlscore.artifacts.plan import SCHEMA_VERSION, Plan, PlanModule
from hlscore.errors import ArtifactError, HlscoreError, first_line

_HINT = "`hlscore rank` and `hlscore plan` write plan.json."

FaultKind = Literal["json", "version", "schema", "rank", "duplicate", "weight", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that keeps a file from being a plan.

    Attributes:
        kind: `json`: no JSON text that can be read; `version`: of the format, unknown; `schema`:
            a key or value that the format does not have; `rank`: a rank without its mode;
            `duplicate`: a module listed twice; `weight`: a weight of another module; `text`: a
            name that cannot be printed.
        message: What is wrong, in a sentence without a full stop.
        path: Keys and indices that lead there.
        place: Where the text itself is broken.
    """

    kind: FaultKind
    message: str
    path: JsonPath = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A plan file with everything that is wrong with it.

    Attributes:
        plan: The plan in the newest version of the format; `None` where the file is none.
        version: Version of the format that the file is written in; `None` where that is unknown.
        faults: What is wrong; empty for a plan.
    """

    plan: Plan | None
    version: int | None
    faults: tuple[Fault, ...]


def plan_text(plan: Plan) -> str:
    """Write a plan as indented JSON in the order of the schema."""
    return plan.model_dump_json(indent=2) + "\n"


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file."""
    path.write_text(plan_text(plan), encoding="utf-8")


def read_plan(path: Path | str) -> Plan:
    """Read a plan, of this schema version or an older one."""
    path = Path(path)
    found = inspect_plan(read_bytes(path))
    if found.plan is None or found.faults:
        raise _refusal(path, found.faults[0])
    return found.plan


def read_bytes(path: Path) -> bytes:
    """Read the content of a plan file.

    Returns:
        Its bytes; of a file larger than any plan one more than a plan may have.
    """
    check_file(path, hint=_HINT)
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}.") from error


def inspect_plan(data: bytes) -> Inspection:
    """Find everything that keeps a text from being a plan."""
    if data.startswith(b"PAR1"):
        message = (
            "it is a Parquet file, such as scores.parquet, from which `hlscore plan` makes one"
        )
        return _no_plan(Fault(kind="json", message=message))
    try:
        document = parse_json(data)
    except ValueError as error:
        place = (
            Place(line=error.lineno, column=error.colno)
            if isinstance(error, JSONDecodeError)
            else None
        )
        return _no_plan(Fault(kind="json", message=syntax_fault(error), place=place))
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        message = f"it has plan schema {quoted(version)}; this hlscore reads {SCHEMA_VERSION}"
        return _no_plan(Fault(kind="version", message=message, path=("schema_version",)))
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return _no_plan(
            *(Fault(kind="schema", message=item["msg"], path=item["loc"]) for item in found),
            version=version,
        )
    except (
        HlscoreError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
        RecursionError,
    ) as error:  # fmt: skip
        return _no_plan(Fault(kind="schema", message=first_line(error)), version=version)
    return Inspection(plan=plan, version=version, faults=tuple(_value_faults(plan)))


def _no_plan(*faults: Fault, version: int | None = None) -> Inspection:
    return Inspection(plan=None, version=version, faults=faults)


def _refusal(path: Path, fault: Fault) -> ArtifactError:
    where = ".".join(str(part) for part in fault.path)
    if fault.kind == "version":
        said = fault.message.removeprefix("it ")
        return ArtifactError(
            f"'{path}' {said}.", hint="Use the hlscore that wrote it, or plan again."
        )
    if fault.kind == "json":
        return ArtifactError(f"'{path}' is not a plan: {fault.message}.", hint=_HINT)
    if fault.kind == "schema":
        at = f"at '{where}': " if where else ""
        return ArtifactError(f"'{path}' is not a plan: {at}{fault.message}.", hint=_HINT)
    return ArtifactError(f"'{path}' is damaged: {fault.message}.", hint=_HINT)


def _value_faults(plan: Plan) -> Iterator[Fault]:
    """Values that a right type does not exclude and that would break an export."""
    seen = set[str]()
    for place, item in enumerate(plan.modules):
        if (item.rank is None) != (item.mode != "lora") or (item.rank is None) != (
            item.alpha is None
        ):
            yield Fault(
                kind="rank",
                message=f"rank or alpha of '{item.module}' do not go with its mode",
                path=("modules", place, "rank"),
            )
        if item.module in seen:
            message = f"'{item.module}' is listed twice"
            yield Fault(kind="duplicate", message=message, path=("modules", place, "module"))
        seen.add(item.module)
        if item.parameter not in _weight_names(item):
            message = f"'{item.parameter}' is no weight of '{item.module}'"
            yield Fault(kind="weight", message=message, path=("modules", place, "parameter"))
    for path, name in _names(plan):
        if not name.isprintable():
            yield Fault(kind="text", message=f"{quoted(name)} cannot be printed", path=path)


def _names(plan: Plan) -> Iterator[tuple[JsonPath, str]]:
    """Names that go into files of other programs."""
    yield ("model", "name"), plan.model.name
    yield ("model", "model_type"), plan.model.model_type
    yield ("budget", "asked"), plan.budget.asked
    for place, item in enumerate(plan.modules):
        yield ("modules", place, "module"), item.module
        yield ("modules", place, "parameter"), item.parameter
    for place, left_out in enumerate(plan.skipped):
        yield ("skipped", place, "module"), left_out.module
        yield ("skipped", place, "parameter"), left_out.parameter
        yield ("skipped", place, "reason"), left_out.reason


def _weight_names(item: PlanModule) -> tuple[str, ...]:
    """Names that the weight of a module may have, as `find_modules` gives them."""
    own = f"{item.module}.weight"
    # Experts and bare parameters are named by themselves.
    return (own, item.module) if item.form in ("experts", "parameter") else (own,)
