"""The figure of the study: loss over trained parameters, one panel for each base and task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis import Entry, losses

from hlscore.pages.painter import paint

PICTURE = Path(__file__).resolve().parent.parent / "pictures" / "evidence.svg"
LORA, PEFT, BY_SCORE, DRAWN, ORACLE, FULL = (
    "LoRA of ranks 1 to 16", "other PEFT methods", "hybrid by a score", "hybrid at random",
    "hybrid by the oracle", "full fine-tuning",
)  # fmt: skip
COLOURS = {
    LORA: "#4269d0", PEFT: "#97bbf5", BY_SCORE: "#efb118", DRAWN: "#9c9c9c", ORACLE: "#3ca951",
    FULL: "#222222",
}  # fmt: skip


def draw(studies: Mapping[tuple[str, str], Mapping[str, Entry]]) -> Path:
    """Write the figure as SVG and give its path."""
    spec = {
        "data": {"values": list(_points(studies))},
        "facet": {"field": "study", "type": "nominal", "title": None},
        "columns": 3,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {
            "width": 230,
            "height": 200,
            "encoding": {
                "x": _axis("parameters", "trained parameters", "~s"),
                "y": _axis("loss", "test loss, nats per token; rlvr: lost reward", "~g"),
                "color": {
                    "field": "kind", "type": "nominal", "title": None,
                    "scale": {"domain": list(COLOURS), "range": list(COLOURS.values())},
                    "legend": {"orient": "bottom", "columns": 3},
                },
            },
            "layer": [
                {"transform": [{"filter": {"field": "kind", "equal": LORA}}],
                 "mark": {"type": "line", "strokeWidth": 2}},
                {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.85}},
            ],
        },
    }  # fmt: skip
    PICTURE.write_bytes(paint(spec, ".svg"))
    return PICTURE


def _axis(field: str, title: str, form: str) -> dict[str, Any]:
    return {
        "field": field, "type": "quantitative", "title": title,
        "scale": {"type": "log", "nice": False, "padding": 8},
        "axis": {"format": form, "labelOverlap": True, "tickCount": 5},
    }  # fmt: skip


def _points(studies: Mapping[tuple[str, str], Mapping[str, Entry]]) -> Iterable[dict[str, Any]]:
    for (base, task), arms in studies.items():
        for name, entry in arms.items():
            if "trials" in entry:
                yield {
                    "study": f"{base}, {task}",
                    "kind": _kind(name),
                    "parameters": entry["parameters"],
                    "loss": float(losses(entry).mean()),
                }


def _kind(name: str) -> str:
    if name.startswith("lora"):
        return LORA
    if name == "full":
        return FULL
    if name.startswith("hybrid random"):
        return DRAWN
    if name == "hybrid oracle":
        return ORACLE
    return BY_SCORE if name.startswith("hybrid") else PEFT
