"""Locks: modules whose mode the user decides."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from hlscore.errors import UsageError
from hlscore.planning.memory import Mode

_HINT = "Use PATTERN=full, =lora, =frozen or =rank:N, such as '*.down_proj=full'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What a pattern of module names is pinned to.

    Attributes:
        pattern: Glob over full module names.
        mode: The mode.
        rank: LoRA rank; `None` where the solver may choose one of its ranks.
    """

    pattern: str
    mode: Mode
    rank: int | None = None


def parse_lock(text: str) -> Lock:
    """Read a lock."""
    pattern, found, what = text.rpartition("=")
    rank = what.removeprefix("rank:")
    if not found or not pattern:
        raise UsageError(f"--lock '{text}' is not PATTERN=MODE.", hint=_HINT)
    if what == "full":
        return Lock(pattern=pattern, mode="full")
    if what == "frozen":
        return Lock(pattern=pattern, mode="frozen")
    if what == "lora":
        return Lock(pattern=pattern, mode="lora")
    if what.startswith("rank:"):
        number = int(rank) if rank.isascii() and rank.isdecimal() and len(rank) < 5 else 0
        if not 1 <= number <= 8192:
            raise UsageError(f"--lock '{text}' has no rank of 1 to 8192.", hint=_HINT)
        return Lock(pattern=pattern, mode="lora", rank=number)
    raise UsageError(f"--lock '{text}' does not end in a mode.", hint=_HINT)


def locks_of(texts: Sequence[str], modules: Sequence[str]) -> dict[str, Lock]:
    """Find the lock of each module; of several that match, the last one counts.

    Returns:
        The lock of each locked module, by name.
    """
    found = {}
    for text in texts:
        lock = parse_lock(text)
        names = matches(text, modules)
        if not names:
            raise UsageError(
                f"--lock '{text}' matches none of the candidate modules.",
                hint=f"Globs are matched against full names such as {modules[0]}.",
            )
        found.update(dict.fromkeys(names, lock))
    return found


def matches(text: str, modules: Sequence[str]) -> list[str]:
    """Modules that a lock is for."""
    pattern = parse_lock(text).pattern
    return [name for name in modules if fnmatch.fnmatchcase(name, pattern)]
