"""Colours of pages and charts, each with the one that takes its place on a dark page.

A chart is drawn once, in the light colours. The style sheet of the page replaces each by name, so
that a change of theme draws nothing again. Ramp and series stay apart for colour-blind readers
(Okabe and Ito's colours; a ramp of one hue whose lightness only falls).
"""

from __future__ import annotations

COLOURS = {
    "paper": ("#ffffff", "#12181f"),
    "ink": ("#17212b", "#e6ebf0"),
    "muted": ("#536170", "#a3b1bf"),
    "rule": ("#aab4be", "#56636f"),
    "grid": ("#e7ebef", "#232d37"),
    "full": ("#0b5fa5", "#6db8f2"),
    "rest": ("#8194a6", "#74889a"),
    "mark": ("#c8440b", "#ff9a5c"),
    "band": ("#fbeed8", "#332a1b"),
    "spread": ("#d9e7f4", "#1c3347"),
    "halo": ("#fdfdfe", "#0c1116"),
    "ramp-0": ("#eef1f4", "#1d2731"),
    "ramp-1": ("#cfe1f0", "#20425f"),
    "ramp-2": ("#9dc5e2", "#2a648f"),
    "ramp-3": ("#5a9ecc", "#478ec0"),
    "ramp-4": ("#2270b2", "#85bfe6"),
    "ramp-5": ("#0a3a70", "#d3eafa"),
    "series-0": ("#56b4e9", "#56b4ea"),
    "series-1": ("#0072b2", "#2d8fd0"),
    "series-2": ("#009e73", "#17b58a"),
    "series-3": ("#e69f00", "#e8a91f"),
    "series-4": ("#d55e00", "#e8762a"),
    "series-5": ("#cc79a7", "#d58fb6"),
}
"""Light and dark by the name of the CSS variable; lower case, and no two share the light one."""

_LIGHT = [light for light, _ in COLOURS.values()]
PAPER, INK, MUTED, RULE, GRID, FULL, REST, MARK, BAND, SPREAD, HALO = _LIGHT[:11]
RAMP, SERIES = _LIGHT[11:17], _LIGHT[17:]


def style_rules() -> str:
    """Style rules of the colours, and of those drawn into charts; paper is always light."""
    light, dark = (
        " ".join(f"--{name}: {pair[at]};" for name, pair in COLOURS.items()) for at in (0, 1)
    )
    drawn = "\n".join(
        f'.chart svg [{part}="{colour}"] {{ {part}: var(--{name}); }}'
        for name, (colour, _) in COLOURS.items()
        for part in ("fill", "stroke")
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{drawn}"
    )
