"""`hlscore estimate`: what trainings of a model take in memory, from its configuration alone."""

from __future__ import annotations

from typing import Annotated

import typer

from hlscore.cli import memory_options as m
from hlscore.cli import options as o
from hlscore.errors import BudgetError, UsageError


def estimate(
    model: o.Model,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    text_only: o.TextOnly = False,
    include: o.Include = ...,  # type: ignore[assignment]
    exclude: o.Exclude = ...,  # type: ignore[assignment]
    embeddings: o.Embeddings = False,
    head: o.Head = False,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="Of the hybrid. 0.1: 10 % of the candidate modules in full. 0.1p: 10 % of their "
            "parameters. 500M: that many parameters.",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = "0.1",
    rank: Annotated[
        int,
        typer.Option(
            "--rank",
            "-r",
            help="LoRA rank of the modules that are not trained in full.",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = 16,
    optimizer: m.Optimizer = "adamw",
    master: m.Master = "fp32",
    base: m.Base = "16",
    train_batch: m.TrainBatch = 1,
    train_length: m.TrainLength = 2048,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            help="Memory of the device, such as 24GiB: say which trainings fit.",
            show_default=False,
            rich_help_panel=m.MEMORY_PANEL,
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Estimate the training memory of a MODEL: full, LoRA and hybrid; loads no weights.

    **Examples**

    `hlscore estimate Qwen/Qwen3-8B --gpu 80GiB`

    `hlscore estimate builtin:tiny --budget 0.1p --optimizer adamw8bit --train-length 512`
    """
    from hlscore.planning.estimate import ModelShape, check_budget
    from hlscore.planning.estimate import estimate as estimate_memory
    from hlscore.settings import CandidateSettings, ModelSettings, PlanSettings
    from hlscore.views.estimate import print_estimate, print_estimate_json
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
    plan = PlanSettings(
        budget=budget,
        rank=rank,
        memory=m.memory_settings(optimizer, master, base, train_batch, train_length),
    )
    check_budget(budget)
    device_bytes = None if gpu is None else _device_bytes(gpu)
    with status("building the model's shape"):
        from hlscore.inputs.dimensions import dimensions, parameter_sizes
        from hlscore.inputs.model import load_shape
        from hlscore.inputs.modules import find_modules

        built, _ = load_shape(settings)
        shape = ModelShape(
            n_params=sum(parameter.numel() for parameter in built.parameters()),
            dimensions=dimensions(built),
            modules=find_modules(built, chosen),
            parameters=parameter_sizes(built),
        )
    trainings = estimate_memory(shape, plan)
    if as_json:
        print_estimate_json(model, shape, plan, trainings, device_bytes=device_bytes)
    else:
        print_estimate(settings, chosen, shape, plan, trainings, device_bytes=device_bytes)


def _device_bytes(text: str) -> int:
    from hlscore.planning.budget import parse_budget

    hint = "Give a memory such as 24GiB."
    try:
        size = parse_budget(text)
    except BudgetError as error:
        raise UsageError(f"--gpu is '{text}'.", hint=hint) from error
    if size.amount is None or size.unit != "bytes":
        raise UsageError(f"--gpu is '{text}'.", hint=hint)
    return size.amount
