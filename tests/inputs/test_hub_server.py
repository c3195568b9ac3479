"""Holds the fake hub against the real client libraries.

The libraries read their settings when they are imported, so every call runs in a subprocess; calls
that share an environment share one.
"""

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import (
    API_CALLS,
    BreakOff,
    Delay,
    Fault,
    HubServer,
    RepoSpec,
    Status,
    hub_environment,
)

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "notes/deep/a.txt": b"a",
    "notes/b.txt": b"b",
}
ROWS = [{"text": f"row {number}"} for number in range(40)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)

SNAPSHOT = "snapshot"
ONE_FILE = "one_file"
STREAM = "stream"

RUNNER = """
import json, os, sys, time
from pathlib import Path

def snapshot(repo, **options):
    from huggingface_hub import snapshot_download
    folder = Path(snapshot_download(repo, **options))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}

def one_file(repo, filename="model.safetensors", **options):
    from huggingface_hub import hf_hub_download
    return Path(hf_hub_download(repo, filename, **options)).stat().st_size

def stream(repo, **options):
    from datasets import load_dataset
    return list(load_dataset(repo, split="train", streaming=True, **options))

outcomes = []
for number, (call, repo, options) in enumerate(json.loads(sys.stdin.read())):
    options["cache_dir"] = os.path.join(os.environ["HF_HOME"], f"cache-{number}")
    error = value = None
    start = time.monotonic()
    try:
        value = globals()[call](repo, **options)
    except Exception as problem:
        error = f"{type(problem).__module__}.{type(problem).__qualname__}"
    outcomes.append({"value": value, "error": error, "seconds": time.monotonic() - start})
print(json.dumps(outcomes))
"""


@dataclass(frozen=True)
class Outcome:
    """What one call came to.

    Attributes:
        value: What it returned, None if it failed.
        error: The full name of the exception it raised, None if it returned.
        seconds: How long it took.
    """

    value: object
    error: str | None
    seconds: float


@dataclass(frozen=True)
class Case:
    """A call to a client library and what it should come to.

    Attributes:
        call: The name of the function in `RUNNER`.
        repo_id: The repository to ask for.
        error: The full name of the expected exception, None where the call should succeed.
        options: Keyword arguments of the call.
    """

    call: str
    repo_id: str
    error: str | None = None
    options: Mapping[str, str] | None = None


def _faulty(fault: Fault) -> RepoSpec:
    return RepoSpec(FILES, faults={"model.safetensors": fault})


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def _repos() -> dict[str, RepoSpec]:
    return {
        "org/model": RepoSpec(FILES, revisions=("main", "v1")),
        "org/gated": RepoSpec(FILES, gated=True, granted=frozenset({"hf_granted"})),
        "org/breaks": _faulty(BreakOff()),
        "org/breaks-twice": _faulty(BreakOff(times=2)),
        "org/resets": _faulty(BreakOff(times=1, reset=True)),
        "org/slow-once": _faulty(Delay(4.0, times=1, methods=("GET",))),
        "org/down": _faulty(Status(503)),
        "org/down-once": _faulty(Status(503, times=1)),
        "org/api-down": RepoSpec(FILES, faults={API_CALLS: Status(503)}),
        "org/rows": RepoSpec({"train.jsonl": JSONL}, "dataset"),
        "org/table": RepoSpec({"data/train-00000-of-00001.parquet": _parquet()}, "dataset"),
        "org/gated-rows": RepoSpec({"train.jsonl": JSONL}, "dataset", gated=True),
        "org/rows-break": RepoSpec(
            {"train.jsonl": JSONL}, "dataset", faults={"train.jsonl": BreakOff()}
        ),
        "org/rows-break-once": RepoSpec(
            {"train.jsonl": JSONL}, "dataset", faults={"train.jsonl": BreakOff(times=1)}
        ),
    }


_ERRORS = "huggingface_hub.errors."
_NO_DATASET = "datasets.exceptions.DatasetNotFoundError"

CASES = {
    "snapshot": Case(SNAPSHOT, "org/model"),
    "one file": Case(ONE_FILE, "org/model"),
    "tag": Case(SNAPSHOT, "org/model", None, {"revision": "v1"}),
    "file in folder": Case(ONE_FILE, "org/model", None, {"filename": "notes/deep/a.txt"}),
    "granted token": Case(SNAPSHOT, "org/gated", None, {"token": "hf_granted"}),
    "unknown repo": Case(SNAPSHOT, "org/none", _ERRORS + "RepositoryNotFoundError"),
    "unknown repo, one file": Case(ONE_FILE, "org/none", _ERRORS + "RepositoryNotFoundError"),
    "unknown repo with token": Case(
        SNAPSHOT, "org/none", _ERRORS + "RepositoryNotFoundError", {"token": "hf_some"}
    ),
    "dataset as model": Case(SNAPSHOT, "org/rows", _ERRORS + "RepositoryNotFoundError"),
    "gated": Case(SNAPSHOT, "org/gated", _ERRORS + "GatedRepoError"),
    "gated, one file": Case(ONE_FILE, "org/gated", _ERRORS + "GatedRepoError"),
    "gated, other token": Case(
        SNAPSHOT, "org/gated", _ERRORS + "GatedRepoError", {"token": "hf_other"}
    ),
    "unknown revision": Case(
        SNAPSHOT, "org/model", _ERRORS + "RevisionNotFoundError", {"revision": "v9"}
    ),
    "unknown revision, one file": Case(
        ONE_FILE, "org/model", _ERRORS + "RevisionNotFoundError", {"revision": "v9"}
    ),
    "unknown file": Case(
        ONE_FILE, "org/model", _ERRORS + "RemoteEntryNotFoundError", {"filename": "none.txt"}
    ),
    "breaks off": Case(SNAPSHOT, "org/breaks", "httpx.RemoteProtocolError"),
    "breaks off, one file": Case(ONE_FILE, "org/breaks", "httpx.RemoteProtocolError"),
    "breaks off twice": Case(SNAPSHOT, "org/breaks-twice"),
    "reset": Case(ONE_FILE, "org/resets", "httpx.ReadError"),
    "slow once": Case(ONE_FILE, "org/slow-once"),
    "down": Case(ONE_FILE, "org/down", _ERRORS + "LocalEntryNotFoundError"),
    "down once": Case(ONE_FILE, "org/down-once"),
    "api down": Case(SNAPSHOT, "org/api-down", _ERRORS + "LocalEntryNotFoundError"),
    "rows": Case(STREAM, "org/rows"),
    "table": Case(STREAM, "org/table"),
    "rows break off once": Case(STREAM, "org/rows-break-once"),
    "rows break off": Case(STREAM, "org/rows-break", "builtins.ConnectionError"),
    "unknown rows": Case(STREAM, "org/no-rows", _NO_DATASET),
    "gated rows": Case(STREAM, "org/gated-rows", _NO_DATASET),
    "unknown revision of rows": Case(STREAM, "org/rows", _NO_DATASET, {"revision": "v9"}),
}


def _run(environment: dict[str, str], cases: Mapping[str, Case]) -> dict[str, Outcome]:
    """Makes the calls one after the other in one subprocess."""
    calls = [[case.call, case.repo_id, dict(case.options or {})] for case in cases.values()]
    finished = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(calls),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    outcomes = json.loads(finished.stdout.splitlines()[-1])
    return {name: Outcome(**found) for name, found in zip(cases, outcomes, strict=True)}


@dataclass(frozen=True)
class Visit:
    """The server after all of `CASES`, still running, and what they came to."""

    hub: HubServer
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """Every case, made once against one server."""
    with HubServer(_repos(), page_size=2) as hub:
        environment = hub.environment(tmp_path_factory.mktemp("hub"))
        yield Visit(hub, _run(environment, CASES))


@pytest.mark.parametrize("name", CASES)
def test_outcome(visit: Visit, name: str) -> None:
    """Each fault raises the exception that the real hub would bring about."""
    # The hub client moved from httpx to httpx2; their errors have the same names.
    found = visit.outcomes[name].error
    assert str(found).replace("httpx2.", "httpx.") == str(CASES[name].error)


def test_snapshot_holds_every_file(visit: Visit) -> None:
    """What arrives is whole, also after connections that broke off."""
    sizes = {path: len(content) for path, content in FILES.items()}
    for name in ("snapshot", "tag", "granted token", "breaks off twice"):
        assert visit.outcomes[name].value == sizes
    assert visit.outcomes["one file"].value == len(WEIGHTS)


@pytest.mark.parametrize("name", ["rows", "table", "rows break off once"])
def test_stream_yields_every_row(visit: Visit, name: str) -> None:
    """Rows of JSON lines and of parquet stream, also after a broken connection."""
    assert visit.outcomes[name].value == ROWS


def test_tree_comes_in_pages(visit: Visit) -> None:
    """Six entries at two a page take three requests."""
    assert visit.hub.count("/api/models/org/breaks-twice/tree/", "GET") == 3


def test_broken_file_is_asked_for_again(visit: Visit) -> None:
    """The client repeats a closed connection, but not a reset one."""
    once = "org/breaks-twice/resolve"
    assert visit.hub.count(once, "GET") == len(FILES) + 2
    assert visit.hub.count("org/resets/resolve", "GET") == 1


def test_log_names_tokens(visit: Visit) -> None:
    """The log tells which tokens came with the requests."""
    tokens = {request.token for request in visit.hub.log if "org/gated/resolve" in request.path}
    assert tokens == {None, "hf_other", "hf_granted"}


def test_delay_outlasts_the_client_timeout(visit: Visit) -> None:
    """The client gives up on the slow answer and asks again."""
    assert visit.outcomes["slow once"].seconds < 4.0
    assert visit.hub.count("org/slow-once/resolve", "GET") == 2


def test_offline_without_cache(tmp_path: Path) -> None:
    """Offline mode asks nothing and fails without a cache."""
    cases = {
        "snapshot": Case(SNAPSHOT, "org/model"),
        "one file": Case(ONE_FILE, "org/model"),
    }
    with HubServer(_repos()) as hub:
        outcomes = _run(hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"}, cases)
        assert hub.count() == 0
    for outcome in outcomes.values():
        assert outcome.error == _ERRORS + "LocalEntryNotFoundError"


def test_offline_with_cache(tmp_path: Path) -> None:
    """Offline mode asks nothing and finds what an earlier call cached."""
    cases = {"snapshot": Case(SNAPSHOT, "org/model")}
    with HubServer(_repos()) as hub:
        environment = hub.environment(tmp_path)
        online = _run(environment, cases)
        asked = hub.count()
        offline = _run(environment | {"HF_HUB_OFFLINE": "1"}, cases)
        assert hub.count() == asked
    assert offline["snapshot"].value == online["snapshot"].value


def test_nobody_listens(tmp_path: Path) -> None:
    """A closed port reads as a missing local entry."""
    cases = {
        "snapshot": Case(SNAPSHOT, "org/model"),
        "one file": Case(ONE_FILE, "org/model"),
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = hub_environment(f"http://127.0.0.1:{port}", tmp_path)
    for outcome in _run(environment, cases).values():
        assert outcome.error == _ERRORS + "LocalEntryNotFoundError"


def test_bare_unauthorized(tmp_path: Path) -> None:
    """Without an error code, the client takes 401 over http for a plain error."""
    with HubServer({}, bare_unauthorized=True) as hub:
        outcomes = _run(hub.environment(tmp_path), {"unknown": Case(SNAPSHOT, "org/none")})
    assert outcomes["unknown"].error == _ERRORS + "HfHubHTTPError"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
def test_range(visit: Visit, header: str, start: int, stop: int | None) -> None:
    """All three forms of Range give the bytes they name."""
    status, body, content_range = _get_range(visit.hub, header)
    assert status == 206
    assert body == WEIGHTS[start:stop]
    assert content_range.endswith(f"/{len(WEIGHTS)}")


def test_range_past_the_end(visit: Visit) -> None:
    """A Range past the end cannot be served."""
    status, body, content_range = _get_range(visit.hub, f"bytes={len(WEIGHTS)}-")
    assert (status, body, content_range) == (416, b"", f"bytes */{len(WEIGHTS)}")


def test_stopping_cuts_delays_short() -> None:
    """Leaving the server does not wait for a delay to pass."""
    repos = {"org/model": RepoSpec(FILES, faults={API_CALLS: Delay(60.0)})}
    with HubServer(repos) as hub, socket.create_connection(("127.0.0.1", _port(hub))) as client:
        client.sendall(b"GET /api/models/org/model HTTP/1.1\r\nHost: hub\r\n\r\n")
        deadline = time.monotonic() + 10
        while not hub.count("org/model") and time.monotonic() < deadline:
            time.sleep(0.01)
        start = time.monotonic()
    assert time.monotonic() - start < 5


def _port(hub: HubServer) -> int:
    return int(hub.url.rpartition(":")[2])


def _get_range(hub: HubServer, header: str) -> tuple[int, bytes, str]:
    """The status, the body and the Content-Range of a request for part of the weights."""
    connection = HTTPConnection("127.0.0.1", _port(hub), timeout=10)
    path = "/org/model/resolve/main/model.safetensors"
    connection.request("GET", path, headers={"Range": header})
    response = connection.getresponse()
    answer = response.status, response.read(), response.headers["Content-Range"]
    connection.close()
    return answer
