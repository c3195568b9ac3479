"""What `scores` prints."""

from __future__ import annotations

from hlscore.scores.registry import SCORES
from hlscore.views.terminal import Terminal, picked, plain_table, print_json


def print_scores(*, as_json: bool) -> None:
    """Print the scores with formula, unit and source."""
    console, columns = Terminal(), ("formula", "unit", "needs", "source")
    scores = SCORES.values()
    if as_json:
        print_json([picked(score, "name", *columns, "caveat") for score in scores])
        return
    table = plain_table("score", *columns, texts=columns)
    for score in scores:
        table.add_row(score.name, *picked(score, *columns).values())
    console.folded(table)
    console.print()
    for score in scores:
        if score.caveat:
            console.dim(score.caveat)
    console.dim("No score is proven to predict the gain from training.")
