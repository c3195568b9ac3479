"""Reading and writing `plan.json`, an untrusted file; and files that are either artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hlscore.artifacts.files import check_file, first_bytes, read_bytes
from hlscore.artifacts.json_file import LARGEST_BYTES, JsonPath, Place, parse_json, quoted
from hlscore.artifacts.plan import SCHEMA_VERSION, Plan
from hlscore.errors import ArtifactError, HlscoreError
from hlscore.records import ScoreReport

_HINT = "`hlscore rank` and `hlscore plan` write plan.json."

FaultKind = Literal[
    "json",  # no JSON text that can be read
    "version",  # of the format, unknown
    "schema",  # a key or value that the format does not have
    "rank",  # a rank without its mode
    "duplicate",  # a module listed twice
    "weight",  # a weight of another module
    "text",  # a name that cannot be printed
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that keeps a file from being a plan."""

    kind: FaultKind
    message: str  # without a full stop
    path: JsonPath = ()  # keys and indices that lead there
    place: Place | None = None  # where the text itself is broken


def plan_text(plan: Plan) -> str:
    """Write a plan as indented JSON in the order of the schema."""
    return plan.model_dump_json(indent=2) + "\n"


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file."""
    path.write_text(plan_text(plan), encoding="utf-8")


def read_plan(path: Path | str) -> Plan:
    """Read a plan."""
    plan, faults = inspect_plan(read_plan_bytes(Path(path)))
    if plan is not None and not faults:
        return plan
    fault = faults[0]
    if fault.kind == "version":
        what, hint = "cannot be read", "Use the hlscore that wrote it, or plan again."
    else:
        what, hint = "is not a plan" if plan is None else "is damaged", _HINT
    where = f" at '{'.'.join(map(str, fault.path))}':" if fault.kind == "schema" else ""
    raise ArtifactError(f"'{path}' {what}:{where} {fault.message}.", hint=hint)


def read_artifact(path: Path) -> Plan | ScoreReport:
    """Read a plan or a score report; the content decides which, not the name."""
    check_is_artifact(path)
    if not first_bytes(path).startswith(b"PAR1"):
        return read_plan(path)
    from hlscore.artifacts.report import read_report

    return read_report(path)


def check_is_artifact(path: Path) -> None:
    """Refuse a file that is neither a table nor JSON: it was taken for a plan by mistake."""
    hint = "`hlscore rank MODEL` writes scores.parquet and plan.json."
    check_file(path, hint=hint)
    start = first_bytes(path)
    if not start.startswith((b"{", b"[", b"PAR1")):
        raise ArtifactError(f"'{path}' is not a plan or a score report.", hint=hint)


def read_plan_bytes(path: Path) -> bytes:
    """The content of a plan file; of one that is larger than any plan, one byte too many."""
    return read_bytes(path, LARGEST_BYTES + 1, hint=_HINT)


def inspect_plan(data: bytes) -> tuple[Plan | None, list[Fault]]:
    """The plan in a text, `None` where it holds none, and everything that is wrong with it."""
    if data.startswith(b"PAR1"):
        message = (
            "it is a Parquet file, such as scores.parquet, from which `hlscore plan` makes one"
        )
        return None, [Fault(kind="json", message=message)]
    try:
        document = parse_json(data)
    except ValueError as error:
        place = None
        if isinstance(error, JSONDecodeError):
            place = Place(line=error.lineno, column=error.colno)
        return None, [Fault(kind="json", message=str(error), place=place)]
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        message = f"it has plan schema {quoted(version)}; this hlscore reads {SCHEMA_VERSION}"
        return None, [Fault(kind="version", message=message, path=("schema_version",))]
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return None, [Fault(kind="schema", message=item["msg"], path=item["loc"]) for item in found]
    except HlscoreError as error:  # settings that do not go together
        message = error.message.removesuffix(".")
        return None, [Fault(kind="schema", message=message, path=("settings",))]
    return plan, list(_value_faults(plan))


def _value_faults(plan: Plan) -> Iterator[Fault]:
    """Values that a right type does not exclude and that would break an export."""
    seen = set[str]()
    # Names that go into files of other programs.
    names: list[tuple[JsonPath, str]] = [
        (("model", "name"), plan.model.name),
        (("model", "model_type"), plan.model.model_type),
        (("budget", "asked"), plan.budget.asked),
    ]
    for place, item in enumerate(plan.modules):
        path = ("modules", place)
        if {item.rank is not None, item.alpha is not None} != {item.mode == "lora"}:
            message = f"rank or alpha of '{item.module}' do not go with its mode"
            yield Fault(kind="rank", message=message, path=(*path, "rank"))
        if item.module in seen:
            message = f"'{item.module}' is listed twice"
            yield Fault(kind="duplicate", message=message, path=(*path, "module"))
        seen.add(item.module)
        # Experts and bare parameters may be named by themselves, as `find_modules` does.
        by_itself = item.form in ("experts", "parameter") and item.parameter == item.module
        if not by_itself and item.parameter != f"{item.module}.weight":
            message = f"'{item.parameter}' is no weight of '{item.module}'"
            yield Fault(kind="weight", message=message, path=(*path, "parameter"))
        names += (((*path, key), getattr(item, key)) for key in ("module", "parameter"))
    for place, left_out in enumerate(plan.skipped):
        names += (
            (("skipped", place, key), getattr(left_out, key))
            for key in ("module", "parameter", "reason")
        )
    for at, name in names:
        if not name.isprintable():
            yield Fault(kind="text", message=f"{quoted(name)} cannot be printed", path=at)
