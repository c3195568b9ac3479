"""`hlscore modules`: the candidates of a model, from its configuration alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from hlscore.cli import options as o
from hlscore.settings import CandidateSettings, ModelSettings, Option

# What decides the shape of a model.
SHAPE_OPTIONS = ("model", "revision", "trust_remote_code", "text_only")


@o.takes_settings
def modules(
    settings: Annotated[ModelSettings, o.Options(only=SHAPE_OPTIONS)],
    candidates: Annotated[CandidateSettings, o.Options()],
    show_all: Annotated[
        bool,
        Option(
            "List every module and the skipped ones with the reason.", o.OUTPUT_PANEL, name="all"
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the modules of a MODEL that can be ranked; loads no weights.

    **Examples**

    `hlscore modules builtin:tiny`

    `hlscore modules Qwen/Qwen3-8B --all`
    """
    from hlscore.views.modules import print_modules
    from hlscore.views.progress import status

    settings = replace(settings, ignore_adapter=True)  # only the shape of the base is built
    with status("building the model's shape"):
        from hlscore.inputs.model import load_shape
        from hlscore.inputs.modules import find_modules

        shape, _ = load_shape(settings)
        found = find_modules(shape, candidates)
        total = sum(parameter.numel() for parameter in shape.parameters())
    print_modules(found, settings.model, total, show_all=show_all, as_json=as_json)
