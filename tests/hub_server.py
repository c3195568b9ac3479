"""A small real HTTP server that speaks the download side of the Hugging Face hub.

It serves repositories held in memory on 127.0.0.1, can misbehave in the ways that networks and hubs
do, and keeps a log of what was asked of it.
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

API_CALLS = ""
"""The key in `RepoSpec.faults` that stands for the API calls about the repository."""

_LFS_SUFFIXES = (".safetensors", ".bin", ".parquet")
_STAMP = "2025-01-01T00:00:00.000Z"
_SHORT_SLEEP = """import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))
"""
_MODES = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True)
class BreakOff:
    """Promises a whole file, then ends the connection half-way, for the first `times` requests."""

    times: float = float("inf")


@dataclass(frozen=True)
class Status:
    """Answers with an error status, such as 503."""

    code: int


Fault = BreakOff | Status


@dataclass(frozen=True)
class RepoSpec:
    """One repository."""

    files: Mapping[str, bytes]  # the content of each file by path
    repo_type: Literal["model", "dataset"] = "model"
    revisions: tuple[str, ...] = ("main",)  # branches and tags; all name the one commit there is
    gated: bool = False  # files are refused; everybody may still ask what is in the repository
    faults: Mapping[str, Fault] = field(default_factory=dict)  # by file path or `API_CALLS`

    @property
    def sha(self) -> str:
        """The commit hash, which follows from the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def info(self, repo_id: str) -> dict[str, object]:
        """What the hub tells of the repository."""
        return {
            "_id": hashlib.sha256(repo_id.encode()).hexdigest()[:24],
            "id": repo_id, "author": repo_id.partition("/")[0], "sha": self.sha,
            "lastModified": _STAMP, "createdAt": _STAMP, "private": False,
            "gated": "manual" if self.gated else False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(self.files)],
        }  # fmt: skip

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, object]]:
        """The entries of a folder as the tree call lists them."""
        prefix = f"{under}/" if under else ""
        folders: dict[str, dict[str, object]] = {}
        entries: list[dict[str, object]] = []
        for path, content in sorted(self.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folder = prefix + "/".join(parts[:depth])
                folders[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                size = len(content)
                entry: dict[str, object] = {"type": "file", "path": path, "size": size}
                entry["oid"] = _git_blob(content)
                if path.endswith(_LFS_SUFFIXES):
                    entry["lfs"] = {"oid": _etag(path, content), "size": size, "pointerSize": 134}
                entries.append(entry)
        return [*folders.values(), *entries]


class Request(NamedTuple):
    """One request that the server got: HTTP method, and decoded path without the query."""

    method: str
    path: str


class HubServer:
    """Serves repositories while used as a context manager; logs every request, in order."""

    def __init__(self, repos: Mapping[str, RepoSpec]) -> None:
        """Takes a free port; requests are answered once the server is entered."""
        self.repos = dict(repos)
        self.log: list[Request] = []
        self._lock = threading.Lock()
        self._broken: Counter[tuple[str, str]] = Counter()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, folder: Path) -> dict[str, str]:
        """Environment variables that point Hugging Face libraries of a subprocess at this server.

        Every `time.sleep` of it is cut to a hundredth of a second: the libraries wait between
        their attempts for times that no setting changes.
        """
        startup = folder / "startup"
        startup.mkdir(parents=True, exist_ok=True)
        (startup / "sitecustomize.py").write_text(_SHORT_SLEEP)
        paths = filter(None, (str(startup), os.environ.get("PYTHONPATH")))
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
            and not name.lower().endswith("_proxy")
        }
        return kept | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
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

    def breaks_off(self, repo_id: str, key: str, fault: BreakOff) -> bool:
        """Whether this request for a file is one of those that are to break off."""
        with self._lock:
            self._broken[repo_id, key] += 1
            return self._broken[repo_id, key] <= fault.times


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

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.server.hub.log.append(Request(self.command, unquote(url.path)))
        try:
            self._route(url.path, parse_qs(url.query))
        except _AnswerError as error:
            headers = {"X-Error-Message": error.message}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
            self._send_json({"error": error.message}, error.status, headers)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keeps quiet."""

    def _route(self, path: str, query: Mapping[str, list[str]]) -> None:
        api = re.fullmatch(r"/api/(models|datasets)/(.+)", path)
        resolve = re.fullmatch(r"/(?:(datasets)/)?(.+?)/resolve/([^/]+)/(.+)", path)
        if api is not None:
            self._answer_api(_MODES[api[1]], api[2], query)
        elif resolve is not None:
            names = [unquote(part) for part in resolve.groups()[1:]]
            self._answer_file(_MODES[resolve[1] or "models"], *names)
        else:
            raise _AnswerError(404, "Sorry, there is nothing here.")

    def _answer_api(self, kind: str, path: str, query: Mapping[str, list[str]]) -> None:
        repo_id, repo = self._find(kind, unquote(path))
        call = [unquote(part) for part in path.split("/")[repo_id.count("/") + 1 :]]
        self._strike(repo_id, API_CALLS)
        _check_revision(repo, call[1] if len(call) > 1 else repo.revisions[0])
        match call[:1]:
            case [] | ["revision"]:
                self._send_json(repo.info(repo_id))
            case ["tree"]:
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                under = "/".join(call[2:])
                entries = repo.tree(under, recursive=recursive)
                if under and not entries:
                    raise _AnswerError(404, f"{under} does not exist", "EntryNotFound", repo.sha)
                self._send_json(entries)
            case _:
                raise _AnswerError(404, "Sorry, there is nothing here.")

    def _answer_file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo_id, repo = self._find(kind, name)
        if repo.gated:
            raise _AnswerError(401, f"Access to model {repo_id} is restricted.", "GatedRepo")
        _check_revision(repo, revision)
        if path not in repo.files:
            raise _AnswerError(404, "Entry not found", "EntryNotFound", repo.sha)
        broken = self._strike(repo_id, path)
        content = repo.files[path]
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": repo.sha,
            "ETag": f'"{_etag(path, content)}"',
        }
        if path.endswith(_LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            self._send(200, headers, content, broken=broken)
            return
        start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
        if start >= stop:
            self._send(416, headers | {"Content-Range": f"bytes */{len(content)}"}, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206, headers, content[start:stop], broken=broken)

    def _find(self, kind: str, path: str) -> tuple[str, RepoSpec]:
        """The repository that an API or file path starts with."""
        for repo_id, repo in self.server.hub.repos.items():
            if repo.repo_type == kind and f"{path}/".startswith(f"{repo_id}/"):
                return repo_id, repo
        raise _AnswerError(401, "Invalid username or password.", "RepoNotFound")

    def _strike(self, repo_id: str, key: str) -> bool:
        """Answers with an error status, or tells whether the body is to break off."""
        hub = self.server.hub
        fault = hub.repos[repo_id].faults.get(key)
        if isinstance(fault, Status):
            raise _AnswerError(fault.code, "Something went wrong")
        reads = fault is not None and self.command == "GET"
        return reads and hub.breaks_off(repo_id, key, fault)

    def _send_json(
        self, payload: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        content = json.dumps(payload).encode()
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, content)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, *, broken: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if broken else body)
            self.close_connection = broken


def _check_revision(repo: RepoSpec, revision: str) -> None:
    if revision not in (*repo.revisions, repo.sha):
        raise _AnswerError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _git_blob(content: bytes) -> str:
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _etag(path: str, content: bytes) -> str:
    """The sha256 of a large file, the git blob hash of a small one."""
    large = path.endswith(_LFS_SUFFIXES)
    return hashlib.sha256(content).hexdigest() if large else _git_blob(content)
