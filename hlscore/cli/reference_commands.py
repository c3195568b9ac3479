"""What the numbers and files mean: `hlscore scores` and `hlscore schema`."""

from __future__ import annotations

from importlib import resources

import typer

from hlscore.cli import options as o


@o.takes_settings
def scores(as_json: o.Json = False) -> None:
    """List the scores with formula, unit and source.

    **Example**

    `hlscore scores`
    """
    from hlscore.scores.registry import SCORES
    from hlscore.views.terminal import Terminal, picked, plain_table, print_json

    console, columns = Terminal(), ("formula", "unit", "needs", "source")
    found = SCORES.values()
    if as_json:
        print_json([picked(score, "name", *columns, "caveat") for score in found])
        return
    table = plain_table("score", *columns, texts=columns)
    for score in found:
        table.add_row(score.name, *picked(score, *columns).values())
    console.folded(table)
    console.print()
    for score in found:
        if score.caveat:
            console.dim(score.caveat)
    console.dim("No score is proven to predict the gain from training.")


def schema() -> None:
    """Print the JSON Schema of `plan.json`.

    **Example**

    `hlscore schema > plan.schema.json`
    """
    text = (resources.files("hlscore.artifacts") / "plan.schema.json").read_text("utf-8")
    typer.echo(text, nl=False)
