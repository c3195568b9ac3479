"""Places in a README that scripts fill: from `<!-- name -->` to `<!-- end of name -->`."""

from __future__ import annotations

from pathlib import Path


def fill(readme: Path, name: str, text: str) -> None:
    """Replace what stands in a place.

    Raises:
        ValueError: The file has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, opened, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{readme} has no place for {name}: {begin} … {end}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}")
