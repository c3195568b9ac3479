"""Whether a plan is too old, or the libraries have moved on since it was made."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hlscore._version import __version__
from hlscore.checks.rule import Case, Finding, finding
from hlscore.settings import Drift

_DAY = 86_400
_PARTS_KEPT: dict[Drift, int] = {"none": 3, "patch": 2, "minor": 1}
_PATIENCE_SECONDS = 10


def check_age(case: Case) -> Iterator[Finding]:
    """Compare the age of a plan and its versions with what is asked.

    A plan carries no date, so that equal inputs give equal files. Its age is that of the last
    commit that touched it, or of the file where it is not under git or differs from the commit.
    """
    most, file = case.settings.max_age_days, case.file
    if most is not None:
        changed = _last_change(file)
        days = 0.0 if changed is None else (time.time() - changed) / _DAY
        if changed is None:
            yield finding(
                "HLS702",
                f"The date of the last change of '{file.name}' is unknown: this clone of its "
                "repository is shallow.",
            )
        elif days > most:
            yield finding(
                "HLS701",
                f"'{file.name}' was last changed {days:.0f} days ago; at most {most} are allowed.",
            )
    origin = case.plan.provenance
    own = {"hlscore": __version__, "python": platform.python_version()}
    if case.settings.max_drift is not None:
        kept = _PARTS_KEPT[case.settings.max_drift]
        for library, scored in ({"hlscore": origin.hlscore_version} | origin.versions).items():
            found = own.get(library) or _installed(library)
            if found is None or _parts(found)[:kept] != _parts(scored)[:kept]:
                there = "is not installed" if found is None else f"is {found}"
                path = ("versions", library) if library != "hlscore" else ("hlscore_version",)
                message = f"{library} {there}; the scores come from {scored}."
                yield finding("HLS703", message, ("provenance", *path))
    if _parts(origin.hlscore_version) > _parts(__version__):
        yield finding(
            "HLS704",
            f"The scores were written by hlscore {origin.hlscore_version}; this is {__version__}.",
            ("provenance", "hlscore_version"),
        )


def _last_change(file: Path) -> float | None:
    """Seconds since 1970 of the last change; `None` where a shallow clone hides it."""
    of_file = file.stat().st_mtime
    if _git(file, "status", "--porcelain", "--", file.name) != "":
        return of_file  # changed since the last commit, not in it, or no repository
    logged = _git(file, "log", "-1", "--format=%ct %H", "--", file.name)
    if not logged:
        return of_file
    seconds, commit = logged.split()
    # The oldest commit of a shallow clone seems to have written every file.
    shallow = _git(file, "rev-parse", "--is-shallow-repository") == "true"
    if shallow and not _git(file, "log", "-1", "--format=%P", commit):
        return None
    return float(seconds)


def _git(file: Path, *arguments: str) -> str | None:
    """What git says of a file's repository; `None` without git or a repository."""
    try:
        answer = subprocess.run(  # noqa: S603 - fixed words, and a name after `--`
            ["git", "-c", "core.fsmonitor=false", *arguments],  # noqa: S607
            cwd=file.resolve().parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except (PackageNotFoundError, ValueError):
        return None


def _parts(text: str) -> tuple[int, ...]:
    """The three numbers of a version: `2.13.0+cpu` is 2, 13, 0."""
    release = text.partition("+")[0].split(".")
    numbers = [int(re.sub("[^0-9]", "", part)[:9] or 0) for part in release]
    return tuple([*numbers, 0, 0, 0][:3])
