"""`hlscore schema`: the published format of a plan."""

from __future__ import annotations

from importlib import resources

import typer


def schema() -> None:
    """Print the JSON Schema of `plan.json`.

    **Example**

    `hlscore schema > plan.schema.json`
    """
    text = (resources.files("hlscore.artifacts") / "plan.schema.json").read_text("utf-8")
    typer.echo(text, nl=False)
