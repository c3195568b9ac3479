"""`hlscore rank`: the whole flow, once."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hlscore.cli import memory_options as m
from hlscore.cli import objective_options as j
from hlscore.cli import options as o
from hlscore.cli.rank_run import Saved, run_forecast, run_rank
from hlscore.settings import (
    DEFAULT_RANK,
    VALUE_POWER,
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    PlanSettings,
    RankSettings,
    movement_for,
    samples_for,
    score_for,
)


def rank(
    model: o.Model,
    budget: o.BudgetOption = "0.1",
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            help="Score that decides; `hlscore scores` lists them.",
            show_default="hls; snr with --data none",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = None,
    weight_scores: Annotated[
        bool,
        typer.Option(
            "--weight-scores",
            help="Decompose the weights beside the probes: adds snr, spectral, kappa.",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = False,
    lora_rank: Annotated[
        int,
        typer.Option(
            "--rank",
            "-r",
            help="LoRA rank that full fine-tuning is compared against.",
            rich_help_panel=o.PLAN_PANEL,
        ),
    ] = DEFAULT_RANK,
    alpha: o.Alpha = None,
    ranks: o.Ranks = None,
    min_rank: o.MinRank = 0,
    value_power: o.ValuePower = VALUE_POWER,
    lock: o.Locks = ...,  # type: ignore[assignment]
    optimizer: m.Optimizer = "adamw",
    master: m.Master = "fp32",
    base: m.Base = "16",
    train_batch: m.TrainBatch = 1,
    train_length: m.TrainLength = 2048,
    data: o.Data = None,
    data_config: o.DataConfig = None,
    split: o.Split = "train",
    column: o.Columns = ...,  # type: ignore[assignment]
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            help="Examples, pairs or prompts to draw; 0 means all.",
            show_default="256; 128 prompts to sample from; all rollouts of a file",
            rich_help_panel=o.DATA_PANEL,
        ),
    ] = None,
    max_length: o.MaxLength = None,
    objective: j.ObjectiveOption = "sft",
    loss_type: j.LossType = None,
    beta: j.Beta = None,
    rollouts: j.Rollouts = None,
    reward: j.Rewards = ...,  # type: ignore[assignment]
    reward_weight: j.RewardWeights = ...,  # type: ignore[assignment]
    reward_timeout: j.RewardTimeout = 60.0,
    generations: j.Generations = 8,
    temperature: j.Temperature = None,
    top_p: j.TopP = 1.0,
    top_k: j.TopK = 0,
    max_new_tokens: j.MaxNewTokens = 512,
    stop: j.Stop = ...,  # type: ignore[assignment]
    generate_batch: j.GenerateBatch = 64,
    scale_rewards: j.ScaleRewards = "group",
    epsilon: j.Epsilon = 0.2,
    epsilon_high: j.EpsilonHigh = None,
    mask_truncated: j.MaskTruncated = False,
    assistant_only_loss: j.AssistantOnly = False,
    revision: o.Revision = None,
    dtype: o.DtypeOption = "auto",
    device: o.Device = "auto",
    load_in: Annotated[
        Literal["4bit", "8bit"] | None,
        typer.Option(
            "--load-in",
            help="Quantize the weights while loading (needs hlscore[quant]).",
            rich_help_panel=o.MODEL_PANEL,
            show_default=False,
        ),
    ] = None,
    device_map: Annotated[
        Literal["auto"] | None,
        typer.Option(
            "--device-map",
            help="auto: over all GPUs, then CPU memory, then disk (needs hlscore[devices]).",
            rich_help_panel=o.MODEL_PANEL,
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        list[str],
        typer.Option(
            "--max-memory",
            help="Memory for weights of one device, such as 0=20GiB or cpu=64GiB (repeatable).",
            rich_help_panel=o.MODEL_PANEL,
            default_factory=list,
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    offload_folder: Annotated[
        str | None,
        typer.Option(
            "--offload-folder",
            help="Folder for weights that go to disk.",
            show_default="a temporary one",
            rich_help_panel=o.MODEL_PANEL,
        ),
    ] = None,
    shard: o.Shard = False,
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
    text_only: o.TextOnly = False,
    ignore_adapter: Annotated[
        bool,
        typer.Option(
            "--ignore-adapter",
            help="Rank the weights as they are, without the adapter beside them.",
            rich_help_panel=o.MODEL_PANEL,
        ),
    ] = False,
    include: o.Include = ...,  # type: ignore[assignment]
    exclude: o.Exclude = ...,  # type: ignore[assignment]
    embeddings: o.Embeddings = False,
    head: o.Head = False,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            help="Examples per pass; changes speed, not scores.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 8,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Recompute activations in the backward pass: less memory, more time.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = True,
    estimator: o.EstimatorOption = "auto",
    sketch_size: o.SketchSize = None,
    passes: o.Passes = 1,
    accumulate_on: o.AccumulateOn = "device",
    movement: o.MovementOption = "auto",
    update: o.Updates = ...,  # type: ignore[assignment]
    trials: o.Trials = 4,
    trial_steps: o.TrialSteps = 8,
    trial_rate: o.TrialRate = None,
    trial_optimizer: o.TrialOptimizerOption = "factored",
    svd: Annotated[
        Literal["auto", "full", "randomized"],
        typer.Option(
            "--svd",
            help="How gradients are decomposed; auto is full up to a short side of 512.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = "auto",
    groups: Annotated[
        int,
        typer.Option(
            "--groups",
            help="Probe groups per half that standard errors are told from.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 8,
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap",
            help="Resamples of the groups; 0 turns standard errors off.",
            rich_help_panel=o.CAPTURE_PANEL,
        ),
    ] = 200,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of every draw.", rich_help_panel=o.CAPTURE_PANEL)
    ] = 0,
    out: o.Out = None,
    force: o.Force = False,
    save_every: o.SaveEvery = 300,
    resume: o.Resume = False,
    top: o.Top = 15,
    as_json: o.Json = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would happen, load no weights, write nothing.",
            rich_help_panel=o.OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Score every module of a MODEL and plan which to train in full.

    Runs probe batches forward and backward, writes `scores.parquet` and `plan.json`.

    **Examples**

    `hlscore rank builtin:tiny --budget 0.1`

    `hlscore rank Qwen/Qwen3-0.6B --data train.jsonl --rank 32`

    `hlscore rank ./model --budget 0.1p --column prompt=question --column completion=answer`

    `hlscore rank ./model --data prompts.jsonl --objective grpo --reward math`

    `hlscore rank ./model --data pairs.jsonl --objective dpo --beta 0.1`

    `hlscore rank ./model --data train.jsonl --movement trial`

    `hlscore rank ./model --estimator sketch --load-in 4bit`

    `hlscore rank ./model --data none --score snr`

    `hlscore rank ./model --update ./run-seed-0 --update ./run-seed-1`

    `torchrun --nproc-per-node 8 -m hlscore rank ./model --data train.jsonl`
    """
    probed = ObjectiveSettings(
        objective=objective, loss_type=loss_type, beta=beta, rollouts=rollouts,
        rewards=tuple(reward), reward_weights=tuple(reward_weight), reward_timeout=reward_timeout,
        generations=generations, temperature=temperature, top_p=top_p, top_k=top_k,
        max_new_tokens=max_new_tokens, stop=tuple(stop), generate_batch=generate_batch,
        scale_rewards=scale_rewards, epsilon=epsilon, epsilon_high=epsilon_high,
        mask_truncated=mask_truncated, assistant_only_loss=assistant_only_loss,
    )  # fmt: skip
    capture = CaptureSettings(
        batch_size=batch_size, checkpointing=checkpointing, estimator=estimator,
        sketch_size=sketch_size, passes=passes, accumulate_on=accumulate_on, svd=svd,
        groups=groups, bootstrap=bootstrap, movement=movement_for(movement, update),
        trials=trials,
        trial_steps=trial_steps, trial_rate=trial_rate, trial_optimizer=trial_optimizer,
    )  # fmt: skip
    loaded = ModelSettings(
        model=model, revision=revision, dtype=dtype, device=device, load_in=load_in,
        device_map=device_map, max_memory=o.parse_memory(max_memory), offload_folder=offload_folder,
        shard=shard, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        text_only=text_only, ignore_adapter=ignore_adapter,
    )  # fmt: skip
    candidates = CandidateSettings(
        include=tuple(include), exclude=tuple(exclude), embeddings=embeddings, head=head
    )
    settings = RankSettings(
        model=loaded,
        data=DataSettings(
            data=data,
            config=data_config,
            split=split,
            samples=samples_for(samples, probed),
            max_length=max_length,
            columns=o.parse_columns(column),
        ),
        objective=probed,
        candidates=candidates,
        capture=capture,
        plan=PlanSettings(
            budget=budget,
            score=score_for(score, data),
            rank=lora_rank,
            alpha=alpha,
            ranks=o.parse_ranks(ranks),
            min_rank=min_rank,
            value_power=value_power,
            locks=tuple(lock),
            memory=m.memory_settings(optimizer, master, base, train_batch, train_length),
        ),
        updates=tuple(update),
        weight_scores=weight_scores,
        seed=seed,
    )
    if dry_run:
        run_forecast(settings, as_json=as_json)
    else:
        saved = Saved(every_seconds=save_every, resume=resume, force=force)
        run_rank(settings, out, saved, top=top, as_json=as_json)
