"""Whether a plan is too old, or the libraries have moved on since it was made."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hlscore._version import __version__
from hlscore.artifacts.plan import Plan
from hlscore.checks.findings import Finding
from hlscore.checks.rules import Rule
from hlscore.settings import CheckSettings, Drift

AGE = Rule(
    code="HLS701",
    name="young enough",
    asks="The plan was changed in the last days that are allowed.",
    why="Data and checkpoints move on; the scores do not.",
    remedy="Rank the present checkpoint on the present data again.",
    when="--max-age",
)
NO_AGE = Rule(
    code="HLS702",
    name="age is known",
    asks="The date of the last change of the plan is known.",
    why="A shallow clone knows only its last commit.",
    remedy="Fetch the history (in GitHub's checkout action: fetch-depth: 0).",
    when="--max-age",
)
DRIFT = Rule(
    code="HLS703",
    name="same libraries",
    asks="The installed libraries are those that scored, up to the drift that is allowed.",
    why="Another version may compute other gradients, or name modules otherwise.",
    remedy="Install the versions of the plan, or rank again with these.",
    when="--max-drift",
)
NEWER = Rule(
    code="HLS704",
    name="no newer hlscore",
    asks="The plan was not written by a newer hlscore than this one.",
    why="It may hold what this one does not check.",
    remedy="Update hlscore.",
    level="warning",
)

RULES = (AGE, NO_AGE, DRIFT, NEWER)

_DAY = 86_400
_PARTS_KEPT: dict[Drift, int] = {"none": 3, "patch": 2, "minor": 1}
_PATIENCE_SECONDS = 10


def check_age(plan: Plan, file: Path, settings: CheckSettings) -> Iterator[Finding]:
    """Hold the age of a plan and its versions against what is asked.

    A plan carries no date, so that equal inputs give equal files. Its age is that of the last
    commit that touched it, or of the file where it is not under git or differs from the commit.
    """
    if settings.max_age_days is not None:
        yield from _age(file, settings.max_age_days)
    if settings.max_drift is not None:
        yield from _drift(plan, settings.max_drift)
    written = plan.provenance.hlscore_version
    if _parts(written) > _parts(__version__):
        yield NEWER.finding(
            f"The scores were written by hlscore {written}; this is {__version__}.",
            ("provenance", "hlscore_version"),
        )


def _age(file: Path, most: int) -> Iterator[Finding]:
    changed = _last_change(file)
    if changed is None:
        yield NO_AGE.finding(
            f"The date of the last change of '{file.name}' is unknown: this clone of its "
            "repository is shallow."
        )
        return
    days = (time.time() - changed) / _DAY
    if days > most:
        yield AGE.finding(
            f"'{file.name}' was last changed {days:.0f} days ago; at most {most} are allowed."
        )


def _last_change(file: Path) -> float | None:
    """Seconds since 1970 of the last change; `None` where a shallow clone hides it."""
    of_file = file.stat().st_mtime
    if _git(file, "status", "--porcelain", "--", file.name) != "":
        return of_file  # changed since the last commit, not in it, or no repository
    told = _git(file, "log", "-1", "--format=%ct %H", "--", file.name)
    if not told:
        return of_file
    seconds, commit = told.split()
    # The oldest commit of a shallow clone seems to have written every file.
    shallow = _git(file, "rev-parse", "--is-shallow-repository") == "true"
    if shallow and not _git(file, "log", "-1", "--format=%P", commit):
        return None
    return float(seconds)


def _git(file: Path, *arguments: str) -> str | None:
    """What git says of a file's repository; `None` without git or a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603 - fixed words, and a name after `--`
            [git, "-c", "core.fsmonitor=false", "-C", str(file.resolve().parent), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def _drift(plan: Plan, allowed: Drift) -> Iterator[Finding]:
    kept = _PARTS_KEPT[allowed]
    versions = {"hlscore": plan.provenance.hlscore_version, **plan.provenance.versions}
    for library, scored in versions.items():
        found = _installed(library)
        path = (
            ("provenance", "hlscore_version")
            if library == "hlscore"
            else ("provenance", "versions", library)
        )
        if found is None or _parts(found)[:kept] != _parts(scored)[:kept]:
            there = "is not installed" if found is None else f"is {found}"
            yield DRIFT.finding(f"{library} {there}; the scores come from {scored}.", path)


def _installed(library: str) -> str | None:
    own = {"hlscore": __version__, "python": platform.python_version()}
    if library in own:
        return own[library]
    try:
        return version(library)
    except (PackageNotFoundError, ValueError):
        return None


def _parts(text: str) -> tuple[int, ...]:
    """The three numbers of a version: `2.13.0+cpu` is 2, 13, 0."""
    numbers = []
    for part in text.partition("+")[0].split(".")[:3]:
        digits = "".join(letter for letter in part if letter.isascii() and letter.isdecimal())
        numbers.append(int(digits[:9] or 0))
    return tuple([*numbers, 0, 0, 0][:3])
