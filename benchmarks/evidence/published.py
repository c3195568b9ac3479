"""What the study publishes: tables between markers of `README.md`, and dated result files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from machine import RESULTS, parsed, write_result
from marked import fill

__all__ = ["RESULTS", "fill", "heading", "latest", "parsed", "publish"]
README = Path(__file__).resolve().parent / "README.md"


def heading(*heads: str) -> list[str]:
    """Head of a table in Markdown."""
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def publish(place: str, lines: Sequence[str], result: str, content: Mapping[str, object]) -> None:
    """Put tables into their place and write a dated result file."""
    fill(README, place, "\n".join(["", *lines, ""]))
    print(write_result(result, content))


def latest(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The newest result file of a name; empty where there is none."""
    found = sorted(folder.glob(f"{name}_????-??-??.json"))
    return json.loads(found[-1].read_text()) if found else {}
