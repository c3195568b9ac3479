"""`scores.parquet`: one row per module, with the run's origin in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hlscore.artifacts.files import check_file, first_bytes
from hlscore.errors import ArtifactError, first_line
from hlscore.records import ModelIdentity, ModuleRow, ProbeSummary, RunInfo, ScoreReport
from hlscore.scores.registry import SCORES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
METADATA_KEY = b"hlscore"

_AGAIN = "Write it again with `hlscore rank`."
# Scores whose value has no field in `ModuleRow`: each has a column of floats all the same.
_MORE_SCORES = tuple(name for name in SCORES if name not in ModuleRow.__dataclass_fields__)


class _Origin(BaseModel):
    """What the metadata of the file says."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int
    model: ModelIdentity
    probes: ProbeSummary
    run: RunInfo


@cache
def report_schema() -> pa.Schema:
    """Columns of `scores.parquet` in order, with their types: the fields of `ModuleRow`."""
    numbers = {int: pa.int64(), float: pa.float64()}
    resampled = {score.replicates_column for score in SCORES.values()}
    found: dict[str, pa.DataType] = {}
    for name, hint in get_type_hints(ModuleRow).items():
        if name not in ModuleRow.__slots__ or name == "more_scores":
            continue
        arms = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        kind = next(arm for arm in arms if arm is not NoneType)
        if get_origin(kind) is tuple:
            item = numbers[get_args(kind)[0]]
            found[name] = pa.list_(pa.float32() if name in resampled else item)
        else:
            found[name] = numbers.get(kind, pa.string())  # texts and choices among texts
    return pa.schema(found | dict.fromkeys(_MORE_SCORES, pa.float64()))


def to_table(report: ScoreReport) -> pa.Table:
    """Turn a report into an Arrow table with metadata."""
    schema = report_schema()
    columns = {
        field.name: pa.array(
            # Skipped rows have no value of the scores that are no field.
            [getattr(row, field.name, None) for row in report.rows],
            type=field.type,
        )
        for field in schema
    }
    origin = {
        "schema_version": SCHEMA_VERSION,
        "model": asdict(report.model),
        "probes": asdict(report.probes),
        "run": asdict(report.run),
    }
    metadata = {METADATA_KEY: json.dumps(origin).encode()}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def to_pandas(report: ScoreReport) -> pd.DataFrame:
    """Turn a report into a pandas frame with the columns of the file."""
    frame: pd.DataFrame = to_table(report).to_pandas()
    return frame


def write_report(report: ScoreReport, path: Path) -> None:
    """Write a report to a Parquet file."""
    pq.write_table(to_table(report), path, compression="zstd")


def read_report(path: Path) -> ScoreReport:
    """Read a report, without pandas or torch."""
    check_file(path, hint="`hlscore rank MODEL` writes scores.parquet.")
    try:
        # Not the file as a data set: `k=v` folders in the path would become columns.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        if first_bytes(path).startswith(b"{"):
            raise ArtifactError(
                f"'{path}' is JSON, such as a plan, and scores are asked for.",
                hint="Give the scores.parquet that `hlscore rank` wrote, usually beside the plan.",
            ) from error
        raise ArtifactError(
            f"'{path}' is not a Parquet file: {first_line(error)}",
            hint="Give the scores.parquet that `hlscore rank` wrote.",
        ) from error
    origin = _read_origin(path, table.schema)
    if difference := _first_difference(table.schema, report_schema()):
        raise ArtifactError(
            f"The columns of '{path}' are not those of an hlscore report: {difference}.",
            hint=_AGAIN,
        )
    lists = [field.name for field in table.schema if pa.types.is_list(field.type)]
    plain = table.to_pylist()
    for values in plain:
        values |= {name: () for name in lists if values[name] is None}
        values["more_scores"] = {name: values.pop(name) for name in _MORE_SCORES}
    try:
        rows = tuple(TypeAdapter(list[ModuleRow]).validate_python(plain))
    except ValidationError as error:
        first = error.errors()[0]
        place, name, *_ = first["loc"]
        raise _damaged(path, f"Row {place}", f"'{name}': {first['msg']}") from error
    _check_rows(path, rows)
    return ScoreReport(rows=rows, model=origin.model, probes=origin.probes, run=origin.run)


def _damaged(path: Path, part: str, fault: str) -> ArtifactError:
    return ArtifactError(f"{part} of '{path}' is damaged: {fault}.", hint=_AGAIN)


def _read_origin(path: Path, schema: pa.Schema) -> _Origin:
    raw, part = (schema.metadata or {}).get(METADATA_KEY), "The metadata"
    if raw is None:
        raise ArtifactError(
            f"'{path}' was not written by hlscore: it has no 'hlscore' metadata.",
            hint="`hlscore rank MODEL` writes scores.parquet.",
        )
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, part, first_line(error)) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ArtifactError(
            f"'{path}' has report schema {version}; this hlscore reads {SCHEMA_VERSION}.",
            hint="Use the hlscore that wrote it, or run `hlscore rank` again.",
        )
    try:
        origin = _Origin.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"The metadata of '{path}' is damaged at '{place}': {first['msg']}.", hint=_AGAIN
        ) from error
    if origin.model.n_params < 1:
        raise _damaged(path, part, "the model has no parameters")
    shown = (origin.model.model, origin.model.architecture, origin.run.score)
    if not all(text.isprintable() for text in shown):
        raise _damaged(path, part, "a name cannot be printed")
    return origin


def _first_difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """The first difference between two schemas; empty where they are the same."""
    for field in wanted:
        index = found.get_field_index(field.name)
        if index < 0:
            return f"column '{field.name}' is missing"
        if not found.field(index).type.equals(field.type):
            return f"column '{field.name}' is {found.field(index).type}, not {field.type}"
    same = found.equals(wanted, check_metadata=False)
    return "" if same else "there are further columns, or their order differs"


def _check_rows(path: Path, rows: Sequence[ModuleRow]) -> None:
    """Refuse values that a right type does not exclude and that would break a plan."""
    names = set[str]()
    lengths: dict[str, int] = {}
    for place, row in enumerate(rows):
        faults = []
        for name in report_schema().names:
            value = getattr(row, name)
            if isinstance(value, str) and not value.isprintable():  # controls steer a terminal
                faults.append(f"'{name}' holds characters that cannot be printed")
            size = len(value) if isinstance(value, tuple) else 0
            if size and size != lengths.setdefault(name, size):
                faults.append(f"'{name}' is not as long as that of the other rows")
        if min(row.matrices, row.out_features, row.in_features, row.n_params) < 1:
            faults.append("a size is below 1")
        if not row.curves_fit:
            faults.append("a curve and its ranks differ in length")
        if row.module in names:
            faults.append(f"'{row.module}' is listed twice")
        names.add(row.module)
        if faults:
            raise _damaged(path, f"Row {place}", faults[0])
