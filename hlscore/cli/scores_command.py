"""`hlscore scores`: what the scores are and where they come from."""

from __future__ import annotations

from hlscore.cli import options as o


def scores(as_json: o.Json = False) -> None:
    """List the scores with formula, unit and source.

    **Example**

    `hlscore scores`
    """
    from hlscore.scores.registry import SCORES
    from hlscore.views.scores import print_scores, print_scores_json

    if as_json:
        print_scores_json(tuple(SCORES.values()))
    else:
        print_scores(tuple(SCORES.values()))
