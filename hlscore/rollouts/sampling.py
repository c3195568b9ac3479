"""Sample completions from the model, and judge them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, RewardError
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.tokens import assistant
from hlscore.processes import Processes
from hlscore.rollouts.files import RolloutJournal
from hlscore.rollouts.generation import Writer, untouched
from hlscore.rollouts.prompts import Prompt, encode_prompts
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.rollouts.reward_process import Completions, RewardProcess
from hlscore.settings import ObjectiveSettings
from hlscore.steps import Progress

_JUDGED_AT_ONCE = 256
_NOT_FOR_REWARDS = ("prompt", "completion", "completion_ids", "prompts", "completions")


class Sampler:
    """Samples completions and judges them; `run` does it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ObjectiveSettings,
        rewards: RewardProcess,
        *,
        seed: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._settings, self._rewards = settings, rewards
        self._writer = Writer(model, tokenizer, settings, seed=seed)

    def run(
        self,
        examples: ExampleSet,
        progress: Progress,
        *,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        journal: RolloutJournal | None = None,
        resume: bool = False,
    ) -> RolloutSet:
        """Sample and judge the completions of every prompt, in the order of the data."""
        count = self._settings.generations
        at_once = max(1, self._settings.generate_batch // count)
        began = time.perf_counter()
        done = journal.load() if journal is not None and resume else {}
        earlier = 0.0 if journal is None else journal.seconds
        with self._rewards, untouched(self._model):
            prompts, notes = judgeable_prompts(
                examples, self._tokenizer, self._model, self._rewards
            )
            own = processes.share(_batches(prompts, at_once))
            progress.start("sampling", count * sum(map(len, own)), "completions")
            with _raised_by_each(processes):
                for batch in own:
                    if not all(prompt.number in done for prompt in batch):
                        started = time.perf_counter()
                        groups = self._batch(batch)
                        if journal is not None:
                            journal.append(groups, seconds=time.perf_counter() - started)
                        done.update(groups)
                    progress.advance(count * len(batch))
        everywhere: dict[int, RolloutGroup] = {}
        for part in processes.gather(done):
            everywhere.update(part)
        hung = sum(processes.gather(self._rewards.hung))
        if hung:
            notes = (
                *notes,
                f"A verifier timed out on {hung} completions: their reward is 0.",
            )
        return RolloutSet(
            source=examples.source,
            groups=tuple(everywhere[number] for number in sorted(everywhere)),
            temperature=self._settings.temperature_value,
            notes=notes,
            seconds=earlier + time.perf_counter() - began,
        )

    def _batch(self, batch: Sequence[Prompt]) -> dict[int, RolloutGroup]:
        repeated = [prompt for prompt in batch for _ in range(self._settings.generations)]
        numbers = ",".join(str(prompt.number) for prompt in batch)
        drawn = self._writer.write([prompt.ids for prompt in repeated], numbers)
        decoded = self._tokenizer.batch_decode(
            [draft.ids for draft in drawn], skip_special_tokens=True
        )
        texts = [_turn(prompt, text) for prompt, text in zip(repeated, decoded, strict=True)]
        rewards = self._rewards.judge(
            Completions(
                prompts=[prompt.row["prompt"] for prompt in repeated],
                completions=texts,
                completion_ids=[draft.ids for draft in drawn],
                columns=_columns(repeated),
            )
        )
        rollouts = [
            Rollout(
                prompt=prompt.row["prompt"],
                prompt_ids=prompt.ids,
                completion=text,
                completion_ids=tuple(draft.ids),
                reward=reward,
                truncated=not draft.ended,
            )
            for prompt, draft, text, reward in zip(repeated, drawn, texts, rewards, strict=True)
        ]
        size = self._settings.generations
        return {
            prompt.number: RolloutGroup(
                name=str(prompt.number), rollouts=tuple(rollouts[place * size :][:size])
            )
            for place, prompt in enumerate(batch)
        }


def judgeable_prompts(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rewards: RewardProcess,
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Prompts to complete: those that a built-in verifier can judge at all."""
    prompts, notes = encode_prompts(examples, tokenizer, model)
    if not rewards.builtin:
        return prompts, notes
    kept: list[Prompt] = []
    for part in _batches(prompts, _JUDGED_AT_ONCE):
        judged = rewards.judge(
            Completions(
                prompts=[prompt.row["prompt"] for prompt in part],
                completions=[_turn(prompt, "") for prompt in part],
                completion_ids=[[] for _ in part],
                columns=_columns(part),
            )
        )
        kept += [prompt for prompt, one in zip(part, judged, strict=True) if one is not None]
    if not kept:
        raise DataError(
            f"No prompt of '{examples.source}' has an answer that the reward can judge.",
            hint="Check the column of answers (--column answer=NAME), or use another --reward.",
        )
    left = len(prompts) - len(kept)
    if left:
        notes = (*notes, f"{left} prompts were left out: the reward cannot judge their answers.")
    return tuple(kept), notes


def _turn(prompt: Prompt, text: str) -> Any:
    """A completion in the form of its prompt: text, or a message."""
    return text if isinstance(prompt.row["prompt"], str) else [dict(assistant(text))]


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """Columns of the data for reward functions; rows in memory need not have all of them."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.row)
    return {
        name: [prompt.row.get(name) for prompt in prompts]
        for name in names
        if name not in _NOT_FOR_REWARDS
    }


def _batches(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


@contextmanager
def _raised_by_each(processes: Processes) -> Iterator[None]:
    """Raise data errors as `RewardError`: the main process alone prints data errors."""
    try:
        yield
    except DataError as error:
        if processes.size == 1:
            raise
        raise RewardError(error.message, hint=error.hint) from error


def rewards_of(settings: ObjectiveSettings, functions: Mapping[str, Any]) -> RewardProcess:
    """What judges completions."""
    return RewardProcess(
        [functions.get(name, name) for name in settings.rewards],
        weights=settings.reward_weights,
        timeout=settings.reward_timeout,
    )
