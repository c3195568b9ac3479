"""Reading and writing `plan.json`, an untrusted file; and files that are either artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from hlscore.artifacts.files import first_bytes, read_bytes
from hlscore.artifacts.json_file import LARGEST_BYTES, JsonPath, Place, parse_json, quoted
from hlscore.artifacts.plan import SCHEMA_VERSION, Plan
from hlscore.errors import ArtifactError, HlscoreError, UsageError
from hlscore.records import ScoreReport

_HINT = (
    "`hlscore rank` and `hlscore plan` write plan.json. One of another version is made again: "
    "hlscore plan scores.parquet."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFault:
    """Something that keeps a file from being a plan."""

    code: str  # of the rule of `hlscore check` that it breaks
    message: str  # without a full stop; names the place of a value that the schema refuses
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
    if not isinstance(path, str | PathLike):
        raise UsageError(
            f"A plan is read from a path, not from an object of type '{type(path).__name__}'.",
            hint="Give the path of a plan.json.",
        )
    plan, faults = inspect_plan(read_plan_bytes(Path(path)))
    if plan is not None and not faults:
        return plan
    what, hint = "is not a plan" if plan is None else "is damaged", _HINT
    if faults[0].code == "HLS102":
        what, hint = "cannot be read", "Use the hlscore that wrote it, or plan again."
    raise ArtifactError(f"'{path}' {what}: {faults[0].message}.", hint=hint)


def read_artifact(path: Path) -> Plan | ScoreReport:
    """Read a plan or a score report; the content decides which, not the name."""
    if not start_of_artifact(path).startswith(b"PAR1"):
        return read_plan(path)
    from hlscore.artifacts.report import read_report

    return read_report(path)


def start_of_artifact(path: Path) -> bytes:
    """The first bytes of a file, which is refused if it is neither a table nor JSON."""
    hint = "`hlscore rank MODEL` writes scores.parquet and plan.json."
    start = first_bytes(path, hint=hint)
    if not start.startswith((b"{", b"[", b"PAR1")):
        raise ArtifactError(f"'{path}' is not a plan or a score report.", hint=hint)
    return start


def read_plan_bytes(path: Path) -> bytes:
    """The content of a plan file; of one that is larger than any plan, one byte too many."""
    return read_bytes(path, LARGEST_BYTES + 1, hint=_HINT)


def inspect_plan(data: bytes) -> tuple[Plan | None, list[PlanFault]]:
    """The plan in a text, `None` where it holds none, and everything that is wrong with it."""
    if data.startswith(b"PAR1"):
        message = (
            "it is a Parquet file, such as scores.parquet, from which `hlscore plan` makes one"
        )
        return None, [PlanFault(code="HLS101", message=message)]
    try:
        document = parse_json(data)
    except ValueError as error:
        place = None
        if isinstance(error, JSONDecodeError):
            place = Place(line=error.lineno, column=error.colno)
        return None, [PlanFault(code="HLS101", message=str(error), place=place)]
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        message = f"it has plan schema {quoted(version)}; this hlscore reads {SCHEMA_VERSION}"
        return None, [PlanFault(code="HLS102", message=message, path=("schema_version",))]
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        wrong = [(item["loc"], item["msg"]) for item in found]
    except HlscoreError as error:  # settings that do not go together
        wrong = [(("settings",), error.message.removesuffix("."))]
    else:
        return plan, list(_value_faults(plan))
    return None, [
        PlanFault(code="HLS103", message=f"at '{'.'.join(map(str, path))}': {message}", path=path)
        for path, message in wrong
    ]


def _value_faults(plan: Plan) -> Iterator[PlanFault]:
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
            yield PlanFault(code="HLS107", message=message, path=(*path, "rank"))
        if item.module in seen:
            message = f"'{item.module}' is listed twice"
            yield PlanFault(code="HLS105", message=message, path=(*path, "module"))
        seen.add(item.module)
        # Experts and bare parameters may be named by themselves, as `find_modules` does.
        by_itself = item.form in ("experts", "parameter") and item.parameter == item.module
        if not by_itself and item.parameter != f"{item.module}.weight":
            message = f"'{item.parameter}' is no weight of '{item.module}'"
            yield PlanFault(code="HLS108", message=message, path=(*path, "parameter"))
        names += (((*path, key), getattr(item, key)) for key in ("module", "parameter"))
    for place, left_out in enumerate(plan.skipped):
        names += (
            (("skipped", place, key), getattr(left_out, key))
            for key in ("module", "parameter", "reason")
        )
    for at, name in names:
        if not name.isprintable():
            yield PlanFault(code="HLS109", message=f"{quoted(name)} cannot be printed", path=at)
