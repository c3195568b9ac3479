"""What the study publishes: tables between markers of `README.md`, and dated result files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from machine import RESULTS, write_result

README = Path(__file__).resolve().parent / "README.md"


def put_tables(name: str, lines: Sequence[str], readme: Path = README) -> None:
    """Put tables between `<!-- name -->` and `<!-- end of name -->`.

    Args:
        name: Name of the place.
        lines: Markdown.
        readme: Where.

    Raises:
        ValueError: The file has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, opened, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{readme} has no place for {name}: {begin} … {end}")
    readme.write_text("\n".join([before + begin, "", *lines, "", end + after]))


def publish(place: str, lines: Sequence[str], result: str, content: Mapping[str, object]) -> None:
    """Put tables into their place and write a dated result file."""
    put_tables(place, lines)
    print(write_result(result, content))


def latest(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The newest result file of a name; empty where there is none."""
    found = sorted(folder.glob(f"{name}_????-??-??.json"))
    return json.loads(found[-1].read_text()) if found else {}
