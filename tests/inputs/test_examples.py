"""Data formats: every way to hand probe examples over."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from console import chat, texts, write_rows

from hlscore.cli.validate_command import drawn_by_training
from hlscore.errors import DataError
from hlscore.inputs import examples
from hlscore.inputs.examples import read_examples, wanted_formats
from hlscore.inputs.formats import ExampleSet
from hlscore.settings import DataSettings, ModelSettings, ObjectiveSettings, ValidateSettings

TEXTS = texts(6)
PAIRS = [{"prompt": f"q{number}: ", "completion": f"a{number}"} for number in range(6)]
CHATS = [{"messages": chat(f"q{number}", f"a{number}")} for number in range(6)]
CHAT_PAIRS = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in CHATS]

FORMATS = {
    "text": TEXTS,
    "prompt_completion": PAIRS,
    "messages": CHATS,
    "prompt_completion of messages": CHAT_PAIRS,
}


def read(data: object, *, seed: int = 0, **settings: Any) -> ExampleSet:
    return read_examples(DataSettings(data=str(data), **settings), seed=seed)


def rows_of(found: ExampleSet) -> list[dict[str, Any]]:
    return [dict(row) for row in found.rows]


# Files


def _write_arrow(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(rows))
    kind = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
    with kind(path, table.schema) as writer:
        writer.write_table(table)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


Writer = Callable[[Path, Sequence[Mapping[str, Any]]], object]

WRITERS: dict[str, Writer] = {
    "data.jsonl": write_rows,
    "data.JSONL": write_rows,
    "rows[1].jsonl": write_rows,  # brackets are letters
    "data.json": lambda path, rows: path.write_text(json.dumps(list(rows))),
    "data.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(list(rows)), path),
    "stream.arrow": _write_arrow,
    "file.arrow": _write_arrow,
    "data.csv": _write_csv,
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in WRITERS for shape in FORMATS
     if not (name == "data.csv" and "messages" in shape)],
)  # fmt: skip
def test_file(tmp_path: Path, name: str, shape: str) -> None:
    """Every kind of file gives the same examples in every format."""
    WRITERS[name](tmp_path / name, FORMATS[shape])
    found = read(tmp_path / name)
    assert found.format == shape.partition(" ")[0]
    assert found.source == str(tmp_path / name)
    assert rows_of(found) == FORMATS[shape]


def test_directories(tmp_path: Path) -> None:
    """Files of one split in the order of their names, splits, configurations, saved data sets."""
    for name, rows in (
        ("files/a", TEXTS[:2]), ("files/b", TEXTS[2:]),
        ("splits/train", TEXTS[:4]), ("splits/test", TEXTS[4:]),
        ("configs/one/train", TEXTS[:3]), ("configs/two/train", TEXTS[3:]),
    ):  # fmt: skip
        write_rows(tmp_path / f"{name}.jsonl", rows)
    entries = "".join(f"- config_name: {n}\n  data_files: {n}/*\n" for n in ("one", "two"))
    (tmp_path / "configs/README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    saved = datasets.Dataset.from_list(TEXTS)
    saved.save_to_disk(tmp_path / "saved")
    parts = {"train": saved.select(range(4)), "test": saved.select(range(4, 6))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved splits")
    options: dict[str, Any]
    for name, options, rows in (
        ("files", {}, TEXTS),
        ("splits", {}, TEXTS[:4]),
        ("splits", {"split": "test"}, TEXTS[4:]),
        ("splits", {"split": "test[:1]"}, TEXTS[4:5]),
        ("splits", {"split": "train+test"}, TEXTS),
        ("configs", {"config": "two"}, TEXTS[3:]),
        ("saved", {}, TEXTS),
        ("saved", {"split": "train[-2:]"}, TEXTS[-2:]),
        ("saved splits", {"split": "test"}, TEXTS[4:]),
    ):
        assert rows_of(read(tmp_path / name, **options)) == rows, (name, options)


@pytest.mark.parametrize(
    ("split", "rows"),
    [("train[:4]", TEXTS[:4]), ("train[4:]", TEXTS[4:]), ("train[:50%]", TEXTS[:3]),
     ("train[:100]", TEXTS), ("validation", TEXTS)],
)  # fmt: skip
def test_slice_of_a_file(tmp_path: Path, split: str, rows: list[dict[str, str]]) -> None:
    """A single file is whatever split is asked for."""
    data = write_rows(tmp_path / "data.jsonl", TEXTS)
    assert rows_of(read(data, split=split)) == rows


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_file(tmp_path: Path, suffix: str) -> None:
    """A packed file gives what is in it, alone, in a directory, and where no table holds it."""
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / f"train.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](write_rows(tmp_path / "plain.jsonl", TEXTS).read_bytes()))
    assert rows_of(read(path)) == rows_of(read(folder)) == TEXTS
    mixed = [row | {"other": other} for row, other in zip(TEXTS, [1, "x", [2], 3, 4, 5])]  # noqa: B905
    plain = write_rows(tmp_path / "mixed.jsonl", mixed)
    path.write_bytes(PACKERS[suffix](plain.read_bytes()))
    assert [row["text"] for row in read(path).rows] == [row["text"] for row in TEXTS]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "cannot be read"),
        ("other.jsonl.zst", b"no zstd", "cannot be read"),
        ("broken.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text"', mtime=0), "at line 2"),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "holds no examples"),
        ("data.tar.gz", b"", "is a .gz file"),
        ("data.parquet.gz", b"", "is a .gz file"),
        ("cut.arrow", None, "cannot be read"),
    ],
)
def test_faulty_file(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is None:
        _write_arrow(tmp_path / name, TEXTS)
        content = (tmp_path / name).read_bytes()[:400]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name)


# Draws


def test_draw_is_reproducible(tmp_path: Path) -> None:
    """One seed draws the same rows, in file order; another seed draws others."""
    rows = texts(50)
    data = write_rows(tmp_path / "data.jsonl", rows)
    drawn = rows_of(read(data, samples=10, seed=3))
    assert len(drawn) == 10
    assert drawn == rows_of(read(data, samples=10, seed=3))
    assert drawn != rows_of(read(data, samples=10, seed=4))
    assert drawn == [row for row in rows if row in drawn]
    for samples in (0, 50, 51):
        assert rows_of(read(data, samples=samples)) == rows


@pytest.mark.parametrize(("samples", "taken"), [(0, 21), (7, 7)])
def test_a_hub_data_set_is_never_streamed_without_a_limit(
    monkeypatch: pytest.MonkeyPatch, samples: int, taken: int
) -> None:
    """Asked for everything, a data set without an end is refused after a bounded number of rows."""
    given = []

    class Stream:
        def shuffle(self, **_: object) -> "Stream":
            return self

        def __iter__(self) -> Iterator[dict[str, str]]:
            for number in itertools.count():
                given.append(number)
                yield {"text": f"{number}"}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Stream())
    monkeypatch.setattr(examples, "_MOST_STREAMED", 20)
    with nullcontext() if samples else pytest.raises(DataError, match="holds more than 20 rows"):
        assert len(read("org/data", samples=samples).rows) == samples
    assert len(given) == taken


@pytest.mark.parametrize(
    ("data", "steps", "expected"),
    [("org/data", 60, 686), ("org/data", 2, 512), ("a.jsonl", 60, 0), (None, 60, 0),
     ("builtin:new", 60, 0)],
)  # fmt: skip
def test_examples_of_a_training(data: str | None, steps: int, expected: int) -> None:
    """Of a hub data set a trial draws what its steps need, of a file everything."""
    model, source = ModelSettings(model="m"), DataSettings(data=data)
    assert drawn_by_training(ValidateSettings(model=model, data=source, steps=steps)) == expected


@pytest.mark.parametrize(
    ("objective", "source"),
    [("sft", "builtin:new"), ("dpo", "builtin:known"), ("grpo", "builtin:known")],
)
def test_built_in_probes_of_an_objective(objective: Any, source: str) -> None:
    wanted = wanted_formats(ObjectiveSettings(objective=objective))
    found = read_examples(DataSettings(samples=0), seed=0, wanted=wanted)
    assert (found.source, len(found.rows)) == (source, 320)
    for name in ("builtin:new", "builtin:known"):
        named = read_examples(DataSettings(data=name, samples=0), seed=0, wanted=wanted)
        assert named.source == name
        assert (named.rows == found.rows) == (name == source)


# Columns


@pytest.mark.parametrize("shape", FORMATS)
def test_mapped_columns(tmp_path: Path, shape: str) -> None:
    """Columns under other names are found by the map, and further columns are left out."""
    rows = FORMATS[shape]
    renamed = [{f"my {name}": value for name, value in row.items()} | {"id": 1} for row in rows]
    data = write_rows(tmp_path / "data.jsonl", renamed)
    found = read(data, columns={name: f"my {name}" for name in rows[0]})
    assert rows_of(found) == rows


def test_the_map_decides_the_format(tmp_path: Path) -> None:
    """Of several formats in one file the one that was mapped is read."""
    rows = [TEXTS[place] | PAIRS[place] | CHATS[place] for place in range(6)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    assert read(data).format == "prompt_completion"  # as in TRL
    assert rows_of(read(data, columns={"messages": "messages"})) == CHATS
    assert rows_of(read(data, columns={"text": "text"})) == TEXTS
    assert rows_of(read(data, columns={"prompt": "prompt"})) == PAIRS


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_data_card_may_not_reach_for_the_network(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "rows.jsonl", TEXTS)
    card = 'configs:\n- config_name: default\n  data_files: "http://127.0.0.1:9/x.jsonl"\n'
    (tmp_path / name).write_text(f"---\n{card}---\n" if name == "README.md" else card)
    with pytest.raises(DataError, match="names files outside its directory"):
        read(tmp_path)


def test_columns_that_nobody_asked_for_are_not_decoded(tmp_path: Path) -> None:
    features = {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"no image", "path": None}] * 2, image)
    table = pa.table({"text": ["a b", "c d"], "image": images}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [row["text"] for row in read(tmp_path / "rows.parquet").rows] == ["a b", "c d"]
