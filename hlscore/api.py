"""The Python API: rank the modules of a model that the caller already holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, UsageError, did_you_mean
from hlscore.flow.rank import rank_model
from hlscore.flow.result import RankResult
from hlscore.flow.updates import score_updates
from hlscore.flow.weights_alone import score_weights
from hlscore.inputs.examples import draw_rows, read_probes, wanted_formats
from hlscore.inputs.formats import ExampleSet, example_set
from hlscore.inputs.identity import identify
from hlscore.rollouts.records import RolloutSet
from hlscore.rollouts.rewards import Reward, name_of
from hlscore.rollouts.verifiers import VERIFIERS
from hlscore.settings import (
    CandidateSettings,
    CaptureSettings,
    DataSettings,
    ObjectiveSettings,
    PlanSettings,
    RankSettings,
    Setting,
    settings_in,
)
from hlscore.settings.option import refuse_both
from hlscore.steps import Progress, Silent

Data = str | Path | Iterable[Mapping[str, Any]] | None
Rollouts = Data | RolloutSet
IN_MEMORY = "examples in memory"


def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: Data = None,
    reward: Reward | Sequence[Reward] = (),
    rollouts: Rollouts = None,
    progress: Progress | None = None,
    **options: Any,
) -> RankResult:
    """Rank the modules of a model and plan which to train in full.

    The model comes back untouched: no hook, `.grad`, changed `requires_grad`, dtype or training
    flag stays behind, and its weights are the same bit for bit, also after an exception.

    Args:
        model: A causal language model in memory, on any device.
        tokenizer: Its tokenizer.
        data: Hub id, path or rows; `None` means the built-in probes, `"none"` the weights alone.
        reward: What judges completions that the model samples itself, for grpo: a name as for
            `--reward`, a function as TRL calls it, or several.
        rollouts: Completions with rewards, for grpo: hub id, local path, rows, or those of an
            earlier result.
        progress: Receives the long steps; silent by default.
        **options: The options of `hlscore rank`, listed below.

    Returns:
        Report and plan.

    Raises:
        HlscoreError: Something cannot be used.
    """
    if not hasattr(model, "config"):
        raise UsageError(
            f"model is of type {type(model).__name__}, not a model of transformers.",
            hint="Load one: AutoModelForCausalLM.from_pretrained(NAME).",
        )
    functions = _named(reward)
    values = _values(rank, _RANK_OPTIONS, options) | {
        "model": model.config.name_or_path or type(model).__name__,
        "rewards": tuple(functions),
    }
    if isinstance(data, str | Path):
        values["data"] = str(data)
    if rollouts is not None:
        values["rollouts"] = str(rollouts) if isinstance(rollouts, str | Path) else IN_MEMORY
    settings = RankSettings.of(values)
    refuse_both("data", "rollouts", data is not None and rollouts is not None)
    if tokenizer is None and not settings.data.without_probes:
        raise UsageError("No tokenizer is given.", hint="Give the model's tokenizer.")
    told = progress or Silent()
    identity = identify(model, settings.model.model, getattr(model.config, "_commit_hash", None))
    if settings.data.without_probes:
        return score_weights(settings, told, (model, identity))
    examples = _examples(data if rollouts is None else rollouts, settings)
    result = rank_model(model, tokenizer, identity, examples, settings, told, functions=functions)
    assert result is not None  # noqa: S101 - a process alone is the main one
    return result


def rank_updates(
    base: str | Path,
    updates: str | Path | Sequence[str | Path],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> RankResult:
    """Rank the modules by what finished trainings changed, and plan the next one.

    Weights are read from safetensors files, tensor by tensor; no model is loaded.

    Args:
        base: Hub id or directory of the model that the trainings started from.
        updates: Fine-tuned models or PEFT adapters, hub ids or directories. Several are
            cross-fitted, a single one gives plain tails.
        progress: Receives the decompositions; silent by default.
        **options: The options of `hlscore rank` that need no probes, listed below.

    Returns:
        Report and plan.

    Raises:
        HlscoreError: Something cannot be used.
    """
    several = [updates] if isinstance(updates, str | Path) else list(updates)
    if not several:
        raise UsageError("updates is empty.", hint="Give one finished training or more.")
    values = _values(rank_updates, _UPDATE_OPTIONS, options)
    settings = RankSettings.of(
        values | {"model": str(base), "updates": tuple(str(each) for each in several)}
    )
    result, _ = score_updates(settings, progress or Silent())
    return result


def _options(*without: str, of: tuple[type, ...]) -> dict[str, Setting]:
    """Settings of some classes that become keywords: those that the command line has."""
    every = {name: setting for kind in of for name, setting in settings_in(kind).items()}
    every |= {name: settings_in(RankSettings)[name] for name in ("weight_scores", "seed")}
    return {name: each for name, each in every.items() if name not in without}


# A baseline is a plan to compare with; data, completions and the model are parameters themselves.
_RANK_OPTIONS = _options(
    "baseline", "data", "rollouts", "rewards",
    of=(PlanSettings, DataSettings, ObjectiveSettings, CandidateSettings, CaptureSettings),
)  # fmt: skip
_UPDATE_OPTIONS = _options("baseline", of=(PlanSettings, CandidateSettings))


def _values(
    caller: Callable[..., object], known: Mapping[str, Setting], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords in the types of the settings; `None` means the default."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, inspect.signature(caller).parameters)
            raise TypeError(
                f"{caller.__name__}() got an unexpected keyword argument '{name}'. {hint}".rstrip()
            )
        if value is None:
            continue
        if get_origin(known[name].type) is tuple:
            # A single value is one that somebody forgot to put into a list.
            single = isinstance(value, str) or not isinstance(value, Iterable)
            values[name] = (value,) if single else tuple(value)
        else:
            values[name] = str(value) if name == "budget" else value
        known[name].check(values[name])
    if "ranks" in values:
        values["ranks"] = tuple(sorted(set(values["ranks"])))
    return values


def _describe(function: Any, known: Mapping[str, Setting]) -> None:
    """Put the options into signature and docstring of a function, for `help` and notebooks."""
    signature = inspect.signature(function)
    keywords = [item for item in signature.parameters.values() if item.name != "options"]
    lines = []
    for name, setting in known.items():
        option, kind, default = setting.option, setting.type, setting.default
        if option.default:
            default = None
        if setting.optional or option.default:
            kind = kind | None
        keywords.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
        shown = f" Default: {option.default}." if option.default else ""
        lines.append(f"    {name}: {option.help}{shown}")
    function.__signature__ = signature.replace(parameters=keywords)
    function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\nOptions:\n" + "\n".join(lines)


_describe(rank, _RANK_OPTIONS)
_describe(rank_updates, _UPDATE_OPTIONS)


def _named(reward: Reward | Sequence[Reward]) -> dict[str, Reward]:
    """Rewards by a name that no other has, in their order."""
    given: Any = reward
    single = isinstance(given, str) or callable(given) or not isinstance(given, Iterable)
    several = (given,) if single else tuple(given)
    taken = {item for item in several if isinstance(item, str)} | set(VERIFIERS)
    found: dict[str, Reward] = {}
    for item in several:
        if not (isinstance(item, str) or callable(item)):
            raise UsageError(
                f"A reward is of type {type(item).__name__}.", hint="Give a name or a function."
            )
        name, number = name_of(item), 1
        while not isinstance(item, str) and name in taken | set(found):
            number += 1
            name = f"{name_of(item)}#{number}"
        found[name] = item
    return found


def _examples(data: Rollouts, settings: RankSettings) -> ExampleSet | RolloutSet:
    if isinstance(data, RolloutSet):
        return data
    if data is None or isinstance(data, str | Path):
        return read_probes(settings)
    given: Any = data
    rows = list(given) if isinstance(given, Iterable) else [given]
    if isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(
            "data is neither a name, a path, nor a list of mappings.",
            hint='Give rows such as {"prompt": ..., "completion": ...}; of a DatasetDict, a split.',
        )
    wanted = wanted_formats(settings.objective)
    # Groups of rollouts are drawn later, when all completions of each are known.
    samples = 0 if wanted == ("rollouts",) else settings.data.samples
    drawn = draw_rows(rows, samples, settings.seed)
    return example_set(drawn, IN_MEMORY, settings.data, wanted)
