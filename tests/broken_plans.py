"""Plans that are broken on purpose, and the lines on which they are."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reports
from console import hlscore

from hlscore.artifacts.plan_file import plan_text
from hlscore.planning.make_plan import make_plan
from hlscore.settings import PlanSettings

Document = dict[str, Any]
Change = Callable[[Document], object]


def made(**given: Any) -> Document:
    """A plan for a made-up report of twelve modules, as JSON."""
    base = reports.report(12)
    settings = PlanSettings(**{"budget": "0.25", "rank": 4, **given})
    content: Document = json.loads(plan_text(make_plan(base, settings)))
    return content


def broken() -> Document:
    """That plan with an error, HLS206, and a warning, HLS207."""
    document = made()
    document["modules"][5]["params"] = 10
    document["modules"][11]["alpha"] = 99
    return document


def write(document: Document, path: Path) -> Path:
    """Write a document as `hlscore` writes plans."""
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def values(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """All that is in a document, by path; the empty one is the document."""
    found = {path: value}
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found |= values(value[key], (*path, key))
    return found


def put(document: Document, path: tuple[Any, ...], value: object) -> Document:
    """The document with another value in one place."""
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def line_of(document: Document, path: tuple[Any, ...]) -> int:
    """The line on which a value begins, found by putting a mark in its place.

    Of a key that is missing it is the line of the object that lacks it.
    """
    if path not in values(document):
        return line_of(document, path[:-1])
    lines = json.dumps(put(document, path, "MARK"), indent=2).splitlines()
    return 1 + next(at for at, line in enumerate(lines) if '"MARK"' in line)


def findings(path: Path, *options: object) -> list[dict[str, Any]]:
    """What `hlscore check --json` finds in one plan."""
    found = hlscore("check", path, *options, "--json")
    assert found.code in (0, 1), found.err
    plain = json.loads(found.out)
    (result,) = plain["files"]
    assert found.code == (0 if result["passed"] else 1)
    listed: list[dict[str, Any]] = result["findings"]
    return listed


def git(folder: Path, *words: str, days: int = 0) -> str:
    """What git prints in a folder; commits are some days old."""
    when = f"{int(time.time()) - days * 86_400} +0000"
    given = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *given, *words], cwd=folder, check=True, capture_output=True, text=True,
        env=os.environ | {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when},
    ).stdout  # fmt: skip
