"""`hlscore modules`: the candidates of a model, from its configuration alone."""

from __future__ import annotations

from typing import Annotated

import typer

from hlscore.cli import options as o


def modules(
    model: o.Model,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    text_only: o.TextOnly = False,
    include: o.Include = ...,  # type: ignore[assignment]
    exclude: o.Exclude = ...,  # type: ignore[assignment]
    embeddings: o.Embeddings = False,
    head: o.Head = False,
    show_all: Annotated[
        bool,
        typer.Option(
            "--all",
            help="List every module and the skipped ones with the reason.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the modules of a MODEL that can be ranked; loads no weights.

    **Examples**

    `hlscore modules builtin:tiny`

    `hlscore modules Qwen/Qwen3-8B --all`
    """
    from hlscore.settings import CandidateSettings, ModelSettings
    from hlscore.views.modules import print_modules, print_modules_json
    from hlscore.views.progress import status

    settings = ModelSettings(
        model=model,
        revision=revision,
        trust_remote_code=trust_remote_code,
        text_only=text_only,
        ignore_adapter=True,  # only the shape of the base model is built
    )
    chosen = CandidateSettings(
        include=tuple(include), exclude=tuple(exclude), embeddings=embeddings, head=head
    )
    with status("building the model's shape"):
        from hlscore.inputs.model import load_shape
        from hlscore.inputs.modules import find_modules

        shape, _ = load_shape(settings)
        found = find_modules(shape, chosen)
        total = sum(parameter.numel() for parameter in shape.parameters())
    if as_json:
        print_modules_json(found, model=model, total=total)
    else:
        print_modules(found, model=model, total=total, show_all=show_all)
