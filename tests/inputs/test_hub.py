"""Models and data sets from a hub, and everything that can go wrong on the way.

The client libraries read their settings when they are imported, and that import is slow: the
commands run one after the other in one subprocess, the last of them after the hub has stopped.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from console import QUICK, UNFINISHED, Outcome, hlscore, save_model, texts
from hub_server import API_CALLS, BreakOff, Fault, HubServer, RepoSpec, Request, Status

RUNNER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from console import hlscore
from huggingface_hub import close_session

for line in sys.stdin:
    close_session()  # a kept connection would outlive the hub
    outcome = hlscore(*json.loads(line))
    print(json.dumps([outcome.code, outcome.out, outcome.err]), flush=True)
"""

JSONL = "".join(json.dumps(row) + "\n" for row in texts(8)).encode()
CONFIGURATIONS = b"""---
configs:
- config_name: one
  data_files: one/*
- config_name: two
  data_files: two/*
---
"""
BUILTIN = "builtin:tiny"


class Case(NamedTuple):
    """A run of `hlscore rank`: its arguments, exit status and parts of its error."""

    options: tuple[str, ...]
    code: int = 0
    says: tuple[str, ...] = ()


def _data(name: str, *options: str, says: tuple[str, ...] = ()) -> Case:
    return Case((BUILTIN, "--data", name, *options), 3 if says else 0, says)


CASES = {
    "model": Case(("org/model",)),
    "model again": Case(("org/model",)),
    "tag": Case(("org/model", "--revision", "v1")),
    "pickle": Case(("org/pickle",), 3, ("only has pickle weights (pytorch_model.bin)",)),
    "unknown": Case(("org/none",), 3, ("no model 'org/none'", "Check the spelling")),
    "data set as model": Case(("org/rows",), 3, ("There is no model 'org/rows'",)),
    "no id": Case(("a b",), 3, ("neither a directory nor a valid hub id",)),
    "gated": Case(("org/gated",), 3, ("'org/gated' is gated", "hf auth login")),
    "unknown revision": Case(("org/model", "--revision", "v9"), 3, ("has no revision 'v9'",)),
    "no config": Case(("org/empty",), 3, ("'org/empty' has no config.json",)),
    "broken off": Case(("org/breaks",), 3,
                       ("Downloading the model 'org/breaks' failed", "run the same command")),
    "down": Case(("org/down",), 3, ("the hub cannot be reached",)),
    "broken off once": Case(("org/breaks-once",)),
    "rows": _data("org/rows"),
    "configuration": _data("org/two", "--data-config", "two"),
    "unknown rows": _data("org/none", says=("no data set 'org/none'",)),
    "no data id": _data("a b", says=("There is no data set 'a b'",)),
    "gated rows": _data("org/gated-rows", says=("is gated", "hf auth login")),
    "rows break off": _data("org/rows-break", says=("cannot be reached",)),
    "rows down": _data("org/rows-down", says=("answered with an error", "503")),
    "no rows": _data("org/no-rows", says=("doesn't contain any data files",)),
    "bad rows": _data("org/bad-rows", says=("'org/bad-rows' cannot be read",)),
    "no configuration": _data("org/two", says=("--data-config",)),
    "unknown configuration": _data("org/two", "--data-config", "six",
                                   says=("'six' not found", "'one'")),
    "unknown split": _data("org/rows", "--split", "test", says=("Available splits: ['train']",)),
    "slice": _data("org/rows", "--split", "train[:4]", says=("--samples instead",)),
}  # fmt: skip
STOPPED = {
    "stopped": Case(("org/late",), 3, ("not in the local cache and the hub cannot be reached",)),
    "stopped rows": _data("org/late", says=("cannot be reached",)),
    "stopped, cached": Case(("org/model",)),
}


def _repos(folder: Path) -> dict[str, RepoSpec]:
    files = {path.name: path.read_bytes() for path in save_model(folder).iterdir()}
    weights, junk = "model.safetensors", b"junk" * 100
    copies = ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors")
    many = files | dict.fromkeys(copies, junk) | {"code.py": b"1 / 0", "README.md": b"Hello."}
    pickled = {name: content for name, content in files.items() if name != weights}

    def faulty(fault: Fault) -> RepoSpec:
        return RepoSpec(files, faults={weights: fault})

    def rows(fault: Fault | None = None) -> RepoSpec:
        faults = {} if fault is None else {"train.jsonl": fault}
        return RepoSpec({"train.jsonl": JSONL}, "dataset", faults=faults)

    return {
        "org/model": RepoSpec(many, revisions=("main", "v1")),
        "org/shape": RepoSpec(many),
        "org/pickle": RepoSpec(pickled | {"pytorch_model.bin": junk}),
        "org/gated": RepoSpec(files, gated=True),
        "org/empty": RepoSpec({"README.md": b"Hello."}),
        "org/breaks": faulty(BreakOff()),
        "org/breaks-once": faulty(BreakOff(times=1)),
        "org/down": RepoSpec(files, faults={API_CALLS: Status(503)}),
        "org/rows": rows(),
        "org/rows-break": rows(BreakOff()),
        "org/rows-down": rows(Status(503)),
        "org/gated-rows": RepoSpec({"train.jsonl": JSONL}, "dataset", gated=True),
        "org/no-rows": RepoSpec({"README.md": b"Hello."}, "dataset"),
        "org/bad-rows": RepoSpec({"train.jsonl": b'{"text": "a"}\n{no\n'}, "dataset"),
        "org/two": RepoSpec(
            {"one/a.jsonl": JSONL[:100], "two/a.jsonl": JSONL, "README.md": CONFIGURATIONS},
            "dataset",
        ),
    }


@dataclass
class Visit:
    """What every case came to, and what it asked of the hub."""

    folder: Path  # where each case wrote its results
    commit: str  # of the model
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    asked: dict[str, list[Request]] = field(default_factory=dict)

    def fetched(self, name: str) -> set[str]:
        """Names of the files that a case downloaded."""
        paths = [item.path for item in self.asked[name] if item.method == "GET"]
        return {path.split("/", 5)[5] for path in paths if "/resolve/" in path}

    def plan(self, name: str) -> dict[str, Any]:
        """The plan that a case wrote."""
        return json.loads((self.folder / name / "plan.json").read_text())


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """Every case, run once; the hub has stopped before the last ones."""
    folder = tmp_path_factory.mktemp("hub")
    repos = _repos(folder / "saved")
    found = Visit(folder, repos["org/model"].sha)
    with HubServer(repos) as hub:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(Path(__file__).parents[1])],
            env=hub.environment(folder / "home"), cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def run(name: str, *arguments: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            found.outcomes[name] = Outcome(*json.loads(process.stdout.readline()))
            found.asked[name] = list(hub.log)
            hub.log.clear()

        quick = ("--samples", "6", "--bootstrap", "0", "--max-length", "64", "--out")
        for name, case in CASES.items():
            run(name, "rank", *case.options, *quick, str(folder / name))
        run("modules", "modules", "org/shape", "--json")
    for name, case in STOPPED.items():
        run(name, "rank", *case.options, *quick, str(folder / name))
    process.communicate()
    return found


@pytest.mark.parametrize("name", [*CASES, *STOPPED])
def test_case(visit: Visit, name: str) -> None:
    """Each case ends as it should: with results, or with one error and nothing written."""
    case, outcome = (CASES | STOPPED)[name], visit.outcomes[name]
    assert outcome.code == case.code, outcome
    written = visit.folder / name
    if case.code:
        assert not written.exists()
        assert all(part in outcome.message for part in case.says), outcome.message
    else:
        assert {path.name for path in written.iterdir()} == {"scores.parquet", "plan.json"}
        assert outcome.err == ""


def test_only_what_is_needed_is_fetched(visit: Visit) -> None:
    """No pickles, no second copy of the weights, no code, and nothing that the cache has.

    `modules` fetches no weights, and nothing unfinished is left over.
    """
    needed = {"config.json", "model.safetensors", "tokenizer.json"}
    assert needed <= visit.fetched("model")
    others = visit.fetched("model") - needed
    assert all(name.endswith((".json", ".jinja")) for name in others)
    assert visit.fetched("model again") == visit.fetched("tag") == set()
    outcome = visit.outcomes["modules"]
    assert outcome.code == 0, outcome.err
    assert "model.layers.0.self_attn.q_proj" in outcome.out
    assert "config.json" in visit.fetched("modules")
    assert not [name for name in visit.fetched("modules") if "safetensors" in name]
    assert not [name for name in visit.fetched("pickle") if name.endswith(".bin")]
    assert not list(visit.folder.rglob(UNFINISHED))


def test_the_commit_is_recorded_and_gives_the_same_scores(visit: Visit) -> None:
    """Plans name the commit, whether a tag or nothing was asked for."""
    tables = []
    for name in ("model", "tag", "stopped, cached"):
        model = visit.plan(name)["model"]
        assert (model["name"], model["revision"]) == ("org/model", visit.commit)
        tables.append(pq.ParquetFile(visit.folder / name / "scores.parquet").read())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_rows_are_the_probes(visit: Visit) -> None:
    """A streamed data set gives as many examples as were asked for."""
    for name in ("rows", "configuration"):
        probes = visit.plan(name)["provenance"]["probes"]
        assert (probes["format"], probes["examples"]) == ("text", 6)


@pytest.mark.parametrize("arguments", [("org/none-such",), (BUILTIN, "--data", "org/none-such")])
def test_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """HF_HUB_OFFLINE is read when the libraries are imported; here it is set afterwards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    outcome = hlscore("rank", *arguments, *QUICK, "--out", tmp_path / "out")
    assert outcome.code == 3
    assert "'org/none-such'" in outcome.message
    assert "HF_HUB_OFFLINE" in outcome.message
    assert not (tmp_path / "out").exists()
