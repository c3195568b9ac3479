"""`hlscore scores`: what the scores are and where they come from."""

from __future__ import annotations

from hlscore.cli import options as o


@o.takes_settings
def scores(as_json: o.Json = False) -> None:
    """List the scores with formula, unit and source.

    **Example**

    `hlscore scores`
    """
    from hlscore.views.scores import print_scores

    print_scores(as_json=as_json)
