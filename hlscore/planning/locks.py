"""Locks: modules whose mode the user decides."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from hlscore.errors import UsageError
from hlscore.planning.memory import Mode
from hlscore.settings import LARGEST_RANK

_HINT = "Use PATTERN=full, =lora, =frozen or =rank:N, such as '*.down_proj=full'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What modules are pinned to."""

    pattern: str  # glob over full module names
    mode: Mode
    rank: int | None = None  # LoRA rank; `None` where the solver may choose one of its ranks

    def matches(self, modules: Sequence[str]) -> list[str]:
        """Modules that the lock is for."""
        return [name for name in modules if fnmatch.fnmatchcase(name, self.pattern)]


def parse_lock(text: str) -> Lock:
    """Read a lock."""
    pattern, _, what = text.rpartition("=")
    if not pattern:
        raise UsageError(f"--lock '{text}' is not PATTERN=MODE.", hint=_HINT)
    match what.split(":", 1):
        case ["full" | "frozen" | "lora" as mode]:
            return Lock(pattern=pattern, mode=mode)
        case ["rank", number]:
            if number.isascii() and number.isdecimal() and 1 <= int(number[:5]) <= LARGEST_RANK:
                return Lock(pattern=pattern, mode="lora", rank=int(number))
            raise UsageError(f"--lock '{text}' has no rank of 1 to {LARGEST_RANK}.", hint=_HINT)
    raise UsageError(f"--lock '{text}' does not end in a mode.", hint=_HINT)


def locks_of(
    texts: Sequence[str], modules: Sequence[str], tied: AbstractSet[str]
) -> dict[str, Lock]:
    """The lock of each locked module, by name; of several that match, the last one counts."""
    found = {}
    for text in texts:
        lock = parse_lock(text)
        names = lock.matches(modules)
        if not names:
            raise UsageError(
                f"--lock '{text}' matches none of the candidate modules.",
                hint=f"Globs are matched against full names such as {modules[0]}.",
            )
        found.update(dict.fromkeys(names, lock))
    for module, lock in found.items():
        if lock.mode == "lora" and module in tied:
            raise UsageError(
                f"--lock '{lock.pattern}' asks for LoRA on '{module}', whose weight is tied.",
                hint="LoRA on a tied weight merges wrongly: use =full or =frozen.",
            )
    return found
