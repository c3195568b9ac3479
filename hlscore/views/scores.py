"""What `scores` prints."""

from __future__ import annotations

from rich.text import Text

from hlscore.scores.registry import SCORES
from hlscore.views.terminal import picked, plain_table, print_json, terminal


def print_scores(*, as_json: bool) -> None:
    """Print the scores with formula, unit and source."""
    console, columns = terminal(), ("formula", "unit", "needs", "source")
    scores = SCORES.values()
    if as_json:
        print_json([picked(score, "name", *columns, "caveat") for score in scores])
        return
    table = plain_table("score", *columns, texts=columns)
    for score in scores:
        table.add_row(score.name, *picked(score, *columns).values())
    console.print(table)
    console.print()
    for score in scores:
        if score.caveat:
            console.print(Text(f"{score.name}: {score.caveat}", style="dim"))
    console.print(Text("No score is proven to predict the gain from training.", style="dim"))
