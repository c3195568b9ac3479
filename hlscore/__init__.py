"""hlscore: which weight matrices LoRA will serve badly, and a plan that trains those in full."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hlscore._version import __version__

if TYPE_CHECKING:
    from hlscore.api import rank as rank
    from hlscore.api import rank_updates as rank_updates
    from hlscore.artifacts.plan_file import read_plan as read_plan
    from hlscore.errors import HlscoreError as HlscoreError
    from hlscore.flow.result import RankResult as RankResult
    from hlscore.training.apply import apply as apply
    from hlscore.training.groups import param_groups as param_groups
    from hlscore.training.merge import merge as merge
    from hlscore.training.mixin import HybridTrainerMixin as HybridTrainerMixin

_PLACES = {
    "rank": "hlscore.api",
    "rank_updates": "hlscore.api",
    "RankResult": "hlscore.flow.result",
    "HlscoreError": "hlscore.errors",
    "read_plan": "hlscore.artifacts.plan_file",
    "apply": "hlscore.training.apply",
    "param_groups": "hlscore.training.groups",
    "merge": "hlscore.training.merge",
    "HybridTrainerMixin": "hlscore.training.mixin",
}

__all__ = [
    "HlscoreError", "HybridTrainerMixin", "RankResult", "__version__", "apply",
    "merge", "param_groups", "rank", "rank_updates", "read_plan",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Import the Python API on first use, so that `import hlscore` loads no torch."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'hlscore' has no attribute '{name}'")
