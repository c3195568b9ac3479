"""`scores.parquet`: one row per module, with the run's origin in the file's metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from hlscore.artifacts.files import check_file
from hlscore.errors import ArtifactError, first_line
from hlscore.records import ModelIdentity, ModuleRow, ProbeSummary, RunInfo, ScoreReport
from hlscore.scores.registry import SCORES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
METADATA_KEY = b"hlscore"

_SIZES = ("matrices", "out_features", "in_features", "n_params")
# Scores whose value has no field in `ModuleRow`: each has a column of floats all the same.
_MORE_SCORES = tuple(name for name in SCORES if name not in ModuleRow.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resamples:
    """Which resamples of the scores are read; they are nearly all of a large report.

    Attributes:
        scores: Scores whose resamples are wanted, of a run.
        most: Most resamples of each row; `None` for all.
    """

    scores: Callable[[RunInfo], Collection[str]]
    most: int | None = None


class _Metadata(BaseModel):
    """What the file says about its origin."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int
    model: ModelIdentity
    probes: ProbeSummary
    run: RunInfo


def _columns() -> dict[str, tuple[Any, pa.DataType]]:
    """Python type, without `None`, and Arrow type of each field of a row."""
    arrow = {int: pa.int64(), float: pa.float64()}
    resampled = {score.replicates_column for score in SCORES.values()}
    found: dict[str, tuple[Any, pa.DataType]] = {}
    for name, hint in get_type_hints(ModuleRow).items():
        if name == "more_scores":
            continue
        arms = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        kind = next(arm for arm in arms if arm is not NoneType)
        if get_origin(kind) is tuple:
            item = get_args(kind)[0]
            stored = pa.list_(pa.float32() if name in resampled else arrow[item])
        else:
            stored = arrow.get(kind, pa.string())  # texts and choices among texts
        found[name] = (kind, stored)
    return found | dict.fromkeys(_MORE_SCORES, (float, pa.float64()))


_COLUMNS = _columns()
_LISTS = tuple(name for name, (kind, _) in _COLUMNS.items() if get_origin(kind) is tuple)
_TEXTS = tuple(name for name, (_, stored) in _COLUMNS.items() if stored == pa.string())
_NUMBERS = tuple(name for name, (_, stored) in _COLUMNS.items() if stored == pa.float64())
_CHOICES = {name: get_args(kind) for name, (kind, _) in _COLUMNS.items()
            if get_origin(kind) is Literal}  # fmt: skip
_RESAMPLED = {score.replicates_column for score in SCORES.values()}
_EVEN = tuple(name for name in _LISTS if not name.startswith(("l1_adam", "spectral")))


def report_columns() -> tuple[str, ...]:
    """Columns of `scores.parquet` in order."""
    return tuple(_COLUMNS)


def report_schema() -> pa.Schema:
    """Columns of `scores.parquet` in order, with their types."""
    return pa.schema([(name, stored) for name, (_, stored) in _COLUMNS.items()])


def to_table(report: ScoreReport) -> pa.Table:
    """Turn a report into an Arrow table with metadata."""
    schema = report_schema()
    columns = {
        name: pa.array(
            # Skipped rows have no value of the scores that are no field.
            [getattr(row, name, None) for row in report.rows],
            type=schema.field(name).type,
        )
        for name in schema.names
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


def read_report(path: Path, *, resamples: Resamples | None = None) -> ScoreReport:
    """Read a report, without pandas or torch.

    Args:
        resamples: Which resamples the rows hold; all by default.
    """
    check_file(path, hint="`hlscore rank MODEL` writes scores.parquet.")
    try:
        # Not the file as a data set: `k=v` folders in the path would become columns.
        file = pq.ParquetFile(path)
        origin = _read_metadata(path, file.schema_arrow)
        _check_columns(path, file.schema_arrow)
        table = file.read(columns=_wanted(origin, resamples))
    except (pa.ArrowException, OSError) as error:
        if _is_object(path):
            raise ArtifactError(
                f"'{path}' is JSON, such as a plan, and scores are asked for.",
                hint="Give the scores.parquet that `hlscore rank` wrote, usually beside the plan.",
            ) from error
        raise ArtifactError(
            f"'{path}' is not a Parquet file: {first_line(error)}",
            hint="Give the scores.parquet that `hlscore rank` wrote.",
        ) from error
    rows = _rows(table, None if resamples is None else resamples.most)
    for place, fault in _faults(rows):
        raise ArtifactError(
            f"Row {place} of '{path}' is damaged: {fault}.",
            hint="Write it again with `hlscore rank`.",
        )
    return ScoreReport(rows=rows, model=origin.model, probes=origin.probes, run=origin.run)


def _is_object(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError:
        return False


def _wanted(origin: _Metadata, resamples: Resamples | None) -> list[str]:
    """Columns to read: what nobody asks for is not even decoded."""
    if resamples is None:
        return list(_COLUMNS)
    wanted = resamples.scores(origin.run)
    kept = {score.replicates_column for score in SCORES.values() if score.name in wanted}
    return [name for name in _COLUMNS if name not in _RESAMPLED or name in kept]


def _check_columns(path: Path, schema: pa.Schema) -> None:
    wanted = report_schema()
    if not schema.equals(wanted, check_metadata=False):
        raise ArtifactError(
            f"The columns of '{path}' are not those of an hlscore report: "
            f"{_first_difference(schema, wanted)}.",
            hint="Write it again with `hlscore rank`.",
        )


def _read_metadata(path: Path, schema: pa.Schema) -> _Metadata:
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise ArtifactError(
            f"'{path}' was not written by hlscore: it has no 'hlscore' metadata.",
            hint="`hlscore rank MODEL` writes scores.parquet.",
        )
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"The metadata of '{path}' is damaged: {first_line(error)}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ArtifactError(
            f"'{path}' has report schema {version}; this hlscore reads {SCHEMA_VERSION}.",
            hint="Use the hlscore that wrote it, or run `hlscore rank` again.",
        )
    try:
        origin = _Metadata.model_validate(content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(
            f"The metadata of '{path}' is damaged at '{place}': {error.errors()[0]['msg']}."
        ) from error
    shown = (origin.model.model, origin.model.architecture, origin.run.score)
    if origin.model.n_params < 1:
        raise ArtifactError(f"The metadata of '{path}' is damaged: the model has no parameters.")
    if not all(text.isprintable() for text in shown):
        raise ArtifactError(f"The metadata of '{path}' is damaged: a name cannot be printed.")
    return origin


def _first_difference(found: pa.Schema, wanted: pa.Schema) -> str:
    for field in wanted:
        index = found.get_field_index(field.name)
        if index < 0:
            return f"column '{field.name}' is missing"
        if not found.field(index).type.equals(field.type):
            return f"column '{field.name}' is {found.field(index).type}, not {field.type}"
    return "there are further columns, or their order differs"


def _faults(rows: Sequence[ModuleRow]) -> Iterator[tuple[int, str]]:
    """Values that a right type does not exclude and that would break a plan."""
    names = set()
    for place, row in enumerate(rows):
        yield from ((place, fault) for fault in _identity_faults(row))
        if min(getattr(row, name) for name in _SIZES) < 1:
            yield place, "a size is below 1"
        if row.module in names:
            yield place, f"'{row.module}' is listed twice"
        names.add(row.module)
        curves: tuple[tuple[float, ...], ...] = (
            row.tail_curve, row.tail_curve_errors, row.hls_curve, row.hls_curve_errors,
        )  # fmt: skip
        found = [len(curve) == len(row.curve_ranks) for curve in curves]
        found.append(len(row.l1_adam_curve) in (0, len(row.curve_ranks)))
        found.append(len(row.spectral_curve) == len(row.spectral_ranks))
        if not all(found):
            yield place, "a curve and its ranks differ in length"
        curves += (row.l1_adam_curve, row.spectral_curve)
        if not all(math.isfinite(value) for curve in curves for value in curve):
            yield place, "a curve holds NaN or infinity"
        for name in _NUMBERS:
            if not math.isfinite(getattr(row, name) or 0):
                yield place, f"'{name}' is NaN or infinity"
    yield from _uneven_replicates(rows)


def _identity_faults(row: ModuleRow) -> Iterator[str]:
    for name in (*_TEXTS, *_SIZES):
        if getattr(row, name) is None:
            yield f"'{name}' is missing"
    for name in _TEXTS:
        if not getattr(row, name).isprintable():  # control characters steer a terminal
            yield f"'{name}' holds characters that cannot be printed"
    for name, values in _CHOICES.items():
        if getattr(row, name) not in values:
            yield f"'{name}' is '{getattr(row, name)}'"


def _uneven_replicates(rows: Sequence[ModuleRow]) -> Iterator[tuple[int, str]]:
    for name in _EVEN:
        lengths = [len(getattr(row, name)) if row.is_candidate else None for row in rows]
        first = next((length for length in lengths if length is not None), None)
        for place, length in enumerate(lengths):
            if length is not None and length != first:
                yield place, f"'{name}' is not as long as that of the other rows"


def _rows(table: pa.Table, most: int | None) -> tuple[ModuleRow, ...]:
    columns = {
        name: _list_column(table.column(name), name, most)
        if name in _LISTS
        else table.column(name).to_pylist()
        for name in table.schema.names
    }
    return tuple(
        _row(dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    )


def _row(values: dict[str, Any]) -> ModuleRow:
    more = {name: values.pop(name) for name in _MORE_SCORES if name in values}
    return ModuleRow(**values, more_scores=more)


def _list_column(
    column: pa.ChunkedArray, name: str, most_resamples: int | None
) -> list[tuple[Any, ...]]:
    """Tuples of numbers, empty for null; much faster than Arrow's own way for long lists."""
    resampled = name in _RESAMPLED
    most = most_resamples if resampled else None
    found: list[tuple[Any, ...]] = []
    for chunk in column.chunks:
        if chunk.values.null_count:
            raise ArtifactError(f"'{name}' of the report is damaged: it holds nulls.")
        # Arrow's own conversion to numpy would import pandas.
        numbers = _buffer(chunk.values, chunk.values.type.to_pandas_dtype(), len(chunk.values))
        if resampled and not np.isfinite(numbers).all():
            raise ArtifactError(f"'{name}' of the report is damaged: it holds NaN or infinity.")
        ends = _buffer(chunk, np.int32, len(chunk) + 1).tolist()
        valid = chunk.is_valid().to_pylist()
        starts = zip(ends[:-1], ends[1:], valid, strict=True)
        if most is None:
            plain = numbers.tolist()
            found += [tuple(plain[first:last]) if there else () for first, last, there in starts]
        else:
            found += [
                tuple(numbers[first : min(last, first + most)].tolist()) if there else ()
                for first, last, there in starts
            ]
    return found


def _buffer(array: pa.Array, dtype: Any, count: int) -> NDArray[Any]:
    """Numbers of an array's first data buffer."""
    raw = array.buffers()[1]
    if raw is None:
        return np.zeros(count, dtype=dtype)
    return np.frombuffer(raw, dtype=dtype)[array.offset : array.offset + count]
