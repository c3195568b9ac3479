"""Colours of pages and charts, each with the one that takes its place on a dark page.

A chart is drawn once, in the light colours. The style sheet of the page replaces each by name, so
that a change of theme draws nothing again. Ramp and series stay apart for colour-blind readers
(Okabe and Ito's colours; a ramp of one hue whose lightness only falls).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour on light and on dark paper."""

    name: str  # name of its CSS variable
    light: str  # on light paper, lower-case hexadecimal; no two colours share it
    dark: str  # on dark paper


PAPER = Colour("paper", "#ffffff", "#12181f")
INK = Colour("ink", "#17212b", "#e6ebf0")
MUTED = Colour("muted", "#536170", "#a3b1bf")
RULE = Colour("rule", "#aab4be", "#56636f")
GRID = Colour("grid", "#e7ebef", "#232d37")
FULL = Colour("full", "#0b5fa5", "#6db8f2")
REST = Colour("rest", "#8194a6", "#74889a")
MARK = Colour("mark", "#c8440b", "#ff9a5c")
BAND = Colour("band", "#fbeed8", "#332a1b")
SPREAD = Colour("spread", "#d9e7f4", "#1c3347")
HALO = Colour("halo", "#fdfdfe", "#0c1116")
RAMP = (
    Colour("ramp-0", "#eef1f4", "#1d2731"),
    Colour("ramp-1", "#cfe1f0", "#20425f"),
    Colour("ramp-2", "#9dc5e2", "#2a648f"),
    Colour("ramp-3", "#5a9ecc", "#478ec0"),
    Colour("ramp-4", "#2270b2", "#85bfe6"),
    Colour("ramp-5", "#0a3a70", "#d3eafa"),
)
SERIES = (
    Colour("series-0", "#56b4e9", "#56b4ea"),
    Colour("series-1", "#0072b2", "#2d8fd0"),
    Colour("series-2", "#009e73", "#17b58a"),
    Colour("series-3", "#e69f00", "#e8a91f"),
    Colour("series-4", "#d55e00", "#e8762a"),
    Colour("series-5", "#cc79a7", "#d58fb6"),
)
COLOURS = (PAPER, INK, MUTED, RULE, GRID, FULL, REST, MARK, BAND, SPREAD, HALO, *RAMP, *SERIES)


def colours() -> str:
    """Style rules that define the colours of a page; paper is light whatever the screen is."""
    light, dark = (
        " ".join(f"--{item.name}: {value};" for item, value in zip(COLOURS, values, strict=True))
        for values in ([item.light for item in COLOURS], [item.dark for item in COLOURS])
    )
    at_night = "@media screen and (prefers-color-scheme: dark)"
    return f":root {{ color-scheme: light dark; {light} }}\n{at_night} {{ :root {{ {dark} }} }}"


def repainting() -> str:
    """Style rules that turn the colours drawn into charts into those of the page."""
    return "\n".join(
        f'.chart svg [{part}="{item.light}"] {{ {part}: var(--{item.name}); }}'
        for item in COLOURS
        for part in ("fill", "stroke")
    )
