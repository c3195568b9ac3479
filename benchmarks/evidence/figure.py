"""The figure of the study: loss over trained parameters, one panel for each base and task.

`python benchmarks/evidence/figure.py` draws it from the newest result files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from bases import BASES
from published import latest

from hlscore.pages.vega import paint

PICTURE = Path(__file__).resolve().parent.parent / "pictures" / "evidence.svg"
LORA, PEFT, RANKS, FULL, BY_SCORE, TRAINED, DRAWN, ORACLE = (
    "LoRA of ranks 1 to 16", "other PEFT methods", "a rank for each module", "full fine-tuning",
    "hybrid by a score", "hybrid by a score after training", "hybrid at random",
    "hybrid by the oracle",
)  # fmt: skip
COLOURS = {
    LORA: "#4269d0", PEFT: "#97bbf5", RANKS: "#ff725c", FULL: "#222222", BY_SCORE: "#efb118",
    TRAINED: "#a463f2", DRAWN: "#9c9c9c", ORACLE: "#3ca951",
}  # fmt: skip
# How the names of arms begin; the first that fits counts.
STARTS = {
    "lora": LORA, "ranks": RANKS, "full": FULL, "hybrid random": DRAWN, "hybrid oracle": ORACLE,
    "hybrid": BY_SCORE,
}  # fmt: skip


def main() -> None:
    """Write the figure as SVG."""
    found = {**latest("evidence"), **latest("evidence_rlvr")}
    bases = tuple(f"{base}, " for base in BASES)
    studies = {name: arms for name, arms in found.items() if name.startswith(bases)}
    spec = {
        "data": {"values": list(points(studies))},
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
                    "legend": {"orient": "bottom", "columns": 4, "labelLimit": 0},
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
    print(PICTURE)


def _axis(field: str, title: str, form: str) -> dict[str, Any]:
    return {
        "field": field, "type": "quantitative", "title": title,
        "scale": {"type": "log", "nice": False, "padding": 8},
        "axis": {"format": form, "labelOverlap": True, "tickCount": 5},
    }  # fmt: skip


def points(studies: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """One point for each arm of result files.

    Yields:
        Study, kind of arm, trained parameters and mean loss over seeds.
    """
    for study, arms in studies.items():
        for name, entry in arms.items():
            if "trials" in entry:
                yield {
                    "study": study,
                    "kind": kind_of(name),
                    "parameters": entry["parameters"],
                    "loss": mean(trial["loss"] for trial in entry["trials"]),
                }


def kind_of(name: str) -> str:
    """Which kind of arm has a name."""
    if name.endswith(("run", "update")):
        return TRAINED
    return next((kind for start, kind in STARTS.items() if name.startswith(start)), PEFT)


if __name__ == "__main__":
    main()
