"""A small real HTTP server that speaks the download side of the Hugging Face hub.

It serves repositories held in memory on 127.0.0.1, can misbehave in the ways that networks and hubs
do, and keeps a log of what was asked of it.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

API_CALLS = ""
"""The key in `RepoSpec.faults` that stands for the API calls about the repository."""

_LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
_STAMP = "2025-01-01T00:00:00.000Z"
_SHORT_SLEEP = """import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))
"""
_MODES = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class BreakOff:
    """Promises a whole file, then ends the connection part of the way through the body.

    Attributes:
        times: How many GET requests break off before one goes through; None for all.
    """

    times: int | None = None


@dataclass(frozen=True)
class Status:
    """Answers with an error status, such as 503."""

    code: int


Fault = BreakOff | Status


@dataclass(frozen=True)
class RepoSpec:
    """One repository.

    Attributes:
        files: The content of each file by path.
        repo_type: Whether this is a model or a dataset.
        revisions: The branches and tags; all name the one commit there is.
        gated: Whether the files are refused. As on the hub, everybody may still ask what is in
            the repository.
        faults: What goes wrong, by file path or `API_CALLS`.
    """

    files: Mapping[str, bytes]
    repo_type: Literal["model", "dataset"] = "model"
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    faults: Mapping[str, Fault] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The commit hash, which follows from the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    """One request that the server got.

    Attributes:
        method: The HTTP method.
        path: The decoded path, without the query.
    """

    method: str
    path: str


class HubServer:
    """Serves repositories while used as a context manager.

    Attributes:
        repos: The repositories now served.
        log: Every request, in order.
    """

    def __init__(self, repos: Mapping[str, RepoSpec]) -> None:
        """Takes a free port; requests are answered once the server is entered."""
        self.repos = dict(repos)
        self.log: list[Request] = []
        self._lock = threading.Lock()
        self._struck: dict[tuple[str, str], int] = {}
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        """Starts to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment of `hub_environment` for this server."""
        return hub_environment(f"http://127.0.0.1:{self._server.server_address[1]}", folder)

    def record(self, request: Request) -> None:
        """Adds one request to the log."""
        with self._lock:
            self.log.append(request)

    def strike(self, repo_id: str, key: str, method: str) -> Fault | None:
        """The fault that this request meets, if any; each meeting is counted."""
        fault = self.repos[repo_id].faults.get(key)
        if fault is None:
            return None
        if not isinstance(fault, BreakOff) or fault.times is None:
            return None if isinstance(fault, BreakOff) and method != "GET" else fault
        if method != "GET":
            return None
        with self._lock:
            struck = self._struck.get((repo_id, key), 0)
            if struck >= fault.times:
                return None
            self._struck[repo_id, key] = struck + 1
        return fault


def hub_environment(endpoint: str, folder: Path) -> dict[str, str]:
    """Environment variables that point Hugging Face libraries at an endpoint.

    The variables are read when the libraries are imported, so they are for a subprocess. Every
    `time.sleep` of it is cut to a hundredth of a second: the libraries wait between their attempts
    for times that no setting changes.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        and not name.lower().endswith("_proxy")
    }
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }
    startup = folder / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "sitecustomize.py").write_text(_SHORT_SLEEP)
    earlier = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(startup), earlier]))
    return environment


class _Server(ThreadingHTTPServer):
    """The listening socket, which knows the hub it serves."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet: clients that hang up are part of the tests."""


@dataclass(eq=False)
class _AnswerError(Exception):
    """An error answer."""

    status: int
    message: str
    code: str | None = None
    commit: str | None = None


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: _Server
    headers: Message

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keeps quiet."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.server.hub.record(Request(self.command, unquote(url.path)))
        try:
            self._route(url.path, parse_qs(url.query), body)
        except _AnswerError as error:
            self._send_error(error)

    def _route(self, path: str, query: Mapping[str, list[str]], body: bytes) -> None:
        api = re.fullmatch(r"/api/(models|datasets|spaces)/(.+)", path)
        if api is not None:
            self._answer_api(_MODES[api[1]], unquote(api[2]), api[2], query, body)
            return
        resolve = re.fullmatch(r"/(?:(datasets|spaces)/)?(.+?)/resolve/([^/]+)/(.+)", path)
        if resolve is not None:
            kind = _MODES[resolve[1] or "models"]
            names = [unquote(part) for part in resolve.groups()[1:]]
            self._answer_file(kind, *names)
            return
        raise _AnswerError(404, "Sorry, there is nothing here.")

    def _answer_api(
        self,
        kind: str,
        decoded: str,
        raw: str,
        query: Mapping[str, list[str]],
        body: bytes,
    ) -> None:
        repo_id = self._find(kind, decoded)
        call = [unquote(part) for part in raw.split("/")[repo_id.count("/") + 1 :]]
        repo = self.server.hub.repos[repo_id]
        self._meet(self.server.hub.strike(repo_id, API_CALLS, self.command))
        revision = call[1] if len(call) > 1 else repo.revisions[0]
        _check_revision(repo, revision)
        match call[:1]:
            case [] | ["revision"]:
                self._send_json(_info(repo_id, repo))
            case ["tree"]:
                self._send_tree(repo, "/".join(call[2:]), query)
            case ["paths-info"]:
                wanted = parse_qs(body.decode()).get("paths", [])
                entries = _tree(repo, "", recursive=True)
                paths = {path.strip("/") for path in wanted}
                self._send_json([entry for entry in entries if entry["path"] in paths])
            case _:
                raise _AnswerError(404, "Sorry, there is nothing here.")

    def _answer_file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo_id = self._find(kind, name)
        repo = self.server.hub.repos[repo_id]
        if repo.gated:
            raise _AnswerError(401, f"Access to model {repo_id} is restricted.", "GatedRepo")
        _check_revision(repo, revision)
        if path not in repo.files:
            raise _AnswerError(404, "Entry not found", "EntryNotFound", repo.sha)
        fault = self.server.hub.strike(repo_id, path, self.command)
        self._meet(fault)
        self._send_file(repo, path, fault if isinstance(fault, BreakOff) else None)

    def _find(self, kind: str, path: str) -> str:
        """The id of the repository that an API or file path starts with."""
        for repo_id, repo in self.server.hub.repos.items():
            if repo.repo_type == kind and f"{path}/".startswith(f"{repo_id}/"):
                return repo_id
        raise _AnswerError(401, "Invalid username or password.", "RepoNotFound")

    def _meet(self, fault: Fault | None) -> None:
        """Answers with an error status; other faults come with the body."""
        if isinstance(fault, Status):
            raise _AnswerError(fault.code, "Something went wrong")

    def _send_tree(self, repo: RepoSpec, under: str, query: Mapping[str, list[str]]) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = _tree(repo, under, recursive)
        if under and not entries:
            raise _AnswerError(404, f"{under} does not exist", "EntryNotFound", repo.sha)
        self._send_json(entries)

    def _send_json(self, payload: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(payload).encode())

    def _send_error(self, error: _AnswerError) -> None:
        headers = {"X-Error-Message": error.message}
        if error.code is not None:
            headers["X-Error-Code"] = error.code
        if error.commit is not None:
            headers["X-Repo-Commit"] = error.commit
        body = json.dumps({"error": error.message}).encode()
        self._send(error.status, {"Content-Type": "application/json", **headers}, body)

    def _send_file(self, repo: RepoSpec, path: str, fault: BreakOff | None) -> None:
        content = repo.files[path]
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": repo.sha,
            "ETag": f'"{_etag(path, content)}"',
        }
        if path.endswith(_LFS_SUFFIXES):
            headers["X-Linked-Etag"] = headers["ETag"]
            headers["X-Linked-Size"] = str(len(content))
        span = _span(self.headers.get("Range"), len(content))
        if span is None:
            self._send(200, headers, content, fault)
            return
        start, stop = span
        if start >= stop:
            headers["Content-Range"] = f"bytes */{len(content)}"
            self._send(416, headers, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, headers, content[start:stop], fault)

    def _send(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        fault: BreakOff | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True


def _check_revision(repo: RepoSpec, revision: str) -> None:
    if revision not in (*repo.revisions, repo.sha):
        raise _AnswerError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _etag(path: str, content: bytes) -> str:
    """The sha256 of a large file, the git blob hash of a small one."""
    if path.endswith(_LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return _git_blob(content)


def _git_blob(content: bytes) -> str:
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _info(repo_id: str, repo: RepoSpec) -> dict[str, object]:
    return {
        "_id": hashlib.sha256(repo_id.encode()).hexdigest()[:24],
        "id": repo_id,
        "author": repo_id.partition("/")[0],
        "sha": repo.sha,
        "lastModified": _STAMP,
        "createdAt": _STAMP,
        "private": False,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(repo.files)],
    }


def _tree(repo: RepoSpec, under: str, recursive: bool) -> list[dict[str, object]]:
    """The entries of a folder as the tree call lists them."""
    prefix = f"{under}/" if under else ""
    folders: set[str] = set()
    entries: list[dict[str, object]] = []
    for path, content in sorted(repo.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                entries.append({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
        if recursive or len(parts) == 1:
            entries.append(_tree_file(path, content))
    return entries


def _tree_file(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = _git_blob(content)
    if path.endswith(_LFS_SUFFIXES):
        entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 134}
    return entry


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """The start and stop of the bytes that a Range header asks for, None without one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(size - int(match[2]), 0), size
    return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
