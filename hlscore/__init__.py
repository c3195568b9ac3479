"""hlscore: which weight matrices LoRA will serve badly, and a plan that trains those in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlscore._version import __version__

if TYPE_CHECKING:
    from hlscore.api import RankResult as RankResult
    from hlscore.api import rank as rank

__all__ = ["RankResult", "__version__", "rank"]


def __getattr__(name: str) -> object:
    """Import the Python API on first use, so that `import hlscore` loads no torch."""
    if name in ("rank", "RankResult"):
        from hlscore import api

        return getattr(api, name)
    raise AttributeError(f"module 'hlscore' has no attribute '{name}'")
