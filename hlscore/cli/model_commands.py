"""What a model's configuration alone answers: `hlscore modules` and `hlscore estimate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from hlscore.cli import options as o
from hlscore.errors import UsageError
from hlscore.settings import (
    CandidateSettings,
    MemorySettings,
    ModelSettings,
    PlanSettings,
    option,
    parse_bytes,
    settings_in,
)
from hlscore.views.progress import status

# What decides the shape of a model; of an adapter only the shape of its base is built.
_Shape = Annotated[
    ModelSettings, o.Options(only=("model", "revision", "trust_remote_code", "text_only"))
]


@o.command()
def modules(
    settings: _Shape,
    candidates: Annotated[CandidateSettings, o.Options()],
    show_all: bool = option(
        False, "List every module and the skipped ones with the reason.", name="all"
    ),
    as_json: bool = o.JSON,
) -> None:
    """List the modules of a MODEL that can be ranked; loads no weights.

    **Examples**

    - `hlscore modules builtin:tiny`
    - `hlscore modules Qwen/Qwen3-8B --all`
    """
    from hlscore.views.model import print_modules

    with status("building the model's shape"):
        from hlscore.inputs.identity import count_params
        from hlscore.inputs.model import load_shape
        from hlscore.inputs.modules import find_modules

        shape, _ = load_shape(replace(settings, ignore_adapter=True))
        found = find_modules(shape, candidates)
        total = count_params(shape)
    print_modules(found, settings.model, total, show_all=show_all, as_json=as_json)


def _bytes(text: str, flag: str) -> int:
    size = parse_bytes(text) or 0
    if not 1 <= size <= 2**60:
        raise UsageError(f"{flag} is '{text}'.", hint="Give a memory such as 24GiB.")
    return int(size)


@o.command()
def estimate(
    settings: _Shape,
    candidates: Annotated[CandidateSettings, o.Options()],
    plan: Annotated[
        PlanSettings,
        o.Options(
            only=("budget", "rank", *settings_in(MemorySettings)),
            budget={
                "help": "Of the hybrid. 0.1: 10 % of the candidate modules in full. 0.1p: 10 % "
                "of their parameters. 500M: that many parameters."
            },
            rank={"help": "LoRA rank of the modules that are not trained in full."},
        ),
    ],
    gpu: int | None = option(
        None,
        "Memory of the device, such as 24GiB: say which trainings fit.",
        MemorySettings.panel,
        parse=_bytes,
    ),
    as_json: bool = o.JSON,
) -> None:
    """Estimate the training memory of a MODEL: full, LoRA and hybrid; loads no weights.

    **Examples**

    - `hlscore estimate Qwen/Qwen3-8B --gpu 80GiB`
    - `hlscore estimate builtin:tiny --budget 0.1p --optimizer adamw8bit --train-length 512`
    """
    from hlscore.planning.memory import check_budget, estimate_trainings
    from hlscore.records import ModelShape
    from hlscore.views.model import print_estimate

    check_budget(plan.budget)
    with status("building the model's shape"):
        from hlscore.inputs.identity import count_params, dimensions, parameter_sizes
        from hlscore.inputs.model import load_shape
        from hlscore.inputs.modules import candidates_of, find_modules

        built, _ = load_shape(replace(settings, ignore_adapter=True))
        shape = ModelShape(
            n_params=count_params(built),
            dimensions=dimensions(built, candidates_of(find_modules(built))),
            modules=find_modules(built, candidates),
            parameters=parameter_sizes(built),
        )
    trainings = estimate_trainings(shape, plan)
    print_estimate(settings, candidates, shape, plan, trainings, device_bytes=gpu, as_json=as_json)
