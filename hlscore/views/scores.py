"""What `scores` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.text import Text

from hlscore.scores.registry import Score
from hlscore.views.terminal import plain_table, terminal


def print_scores(scores: Sequence[Score]) -> None:
    """Print the scores with formula, unit and source."""
    console, columns = terminal(), ("formula", "unit", "needs", "source")
    table = plain_table("score", *columns, texts=columns)
    for score in scores:
        table.add_row(score.name, score.formula, score.unit, score.needs, score.source)
    console.print(table)
    console.print()
    for score in scores:
        if score.caveat:
            console.print(Text(f"{score.name}: {score.caveat}", style="dim"))
    console.print(Text("No score is proven to predict the gain from training.", style="dim"))


def print_scores_json(scores: Sequence[Score]) -> None:
    """Print the scores as one JSON list."""
    keys = ("name", "formula", "unit", "needs", "source", "caveat")
    print(json.dumps([{key: getattr(score, key) for key in keys} for score in scores]))
