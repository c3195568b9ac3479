"""Sample completions from the model, and judge them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Protocol

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hlscore.errors import CaptureError, DataError, RewardError
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.model import input_device
from hlscore.inputs.tokens import assistant, context_length, end_token_ids, pad_token_id
from hlscore.processes import Processes
from hlscore.rollouts.files import RolloutJournal
from hlscore.rollouts.prompts import Prompt, encode_prompts
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.rollouts.reward_process import Completions, RewardProcess
from hlscore.settings import ObjectiveSettings

_NOT_FOR_REWARDS = ("prompt", "completion", "completion_ids", "prompts", "completions")


class _Progress(Protocol):
    def start(self, what: str, total: int, unit: str) -> None: ...
    def advance(self, amount: int) -> None: ...


class Sampler:
    """Samples completions and judges them; `run` does it.

    Args:
        model: The model; comes back as it was.
        tokenizer: Its tokenizer.
        settings: How completions are sampled.
        rewards: What judges them.
        seed: Seed of the samples.
    """

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
        self._settings, self._rewards, self._seed = settings, rewards, seed
        self._ends = end_token_ids(tokenizer, model)
        self._pad = pad_token_id(tokenizer, model)
        self._context = context_length(model)
        self._largest = max(1, settings.generate_batch)

    def run(
        self,
        examples: ExampleSet,
        progress: _Progress,
        *,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        journal: RolloutJournal | None = None,
        resume: bool = False,
    ) -> RolloutSet:
        """Sample and judge the completions of every prompt.

        Args:
            examples: Checked examples in the format `prompt`.
            progress: Told about each finished completion.
            processes: This process among those that share the prompts.
            journal: Where finished groups are stored, if anywhere.
            resume: Go on with what is stored.

        Returns:
            The rollouts of all processes, in the order of the data.

        Raises:
            DataError: Nothing can be sampled from a prompt.
            RewardError: A reward function failed.
        """
        prompts, notes = encode_prompts(examples, self._tokenizer, self._model)
        count = self._settings.generations
        at_once = max(1, self._settings.generate_batch // count)
        own = processes.share(_batches(prompts, at_once))
        done = journal.load() if journal is not None and resume else {}
        progress.start("sampling", count * sum(map(len, own)), "completions")
        with self._rewards, _untouched(self._model), _told_by_each(processes):
            for batch in own:
                if not all(prompt.number in done for prompt in batch):
                    groups = self._batch(batch)
                    if journal is not None:
                        journal.append(groups)
                    done.update(groups)
                progress.advance(count * len(batch))
        everywhere: dict[int, RolloutGroup] = {}
        for part in processes.gather(done):
            everywhere.update(part)
        hung = sum(processes.gather(self._rewards.hung))
        if hung:
            notes = (
                *notes,
                f"A verifier came to no end with {hung} completions: they are worth 0.",
            )
        return RolloutSet(
            source=examples.source,
            groups=tuple(everywhere[number] for number in sorted(everywhere)),
            notes=notes,
        )

    def _batch(self, batch: Sequence[Prompt]) -> dict[int, RolloutGroup]:
        drawn = self._sample(batch)
        repeated = [prompt for prompt in batch for _ in range(self._settings.generations)]
        texts = self._texts(repeated, drawn)
        rewards = self._rewards.judge(
            Completions(
                prompts=[prompt.row["prompt"] for prompt in repeated],
                completions=texts,
                completion_ids=[ids for ids, _ in drawn],
                columns={
                    name: [prompt.row[name] for prompt in repeated]
                    for name in batch[0].row
                    if name not in _NOT_FOR_REWARDS
                },
            )
        )
        rollouts = [
            Rollout(
                prompt=prompt.row["prompt"],
                prompt_ids=prompt.ids,
                completion=text,
                completion_ids=tuple(ids),
                reward=reward,
                truncated=truncated,
            )
            for prompt, (ids, truncated), text, reward in zip(
                repeated, drawn, texts, rewards, strict=True
            )
        ]
        size = self._settings.generations
        return {
            prompt.number: RolloutGroup(
                name=str(prompt.number), rollouts=tuple(rollouts[place * size :][:size])
            )
            for place, prompt in enumerate(batch)
        }

    def _texts(
        self, prompts: Sequence[Prompt], drawn: Sequence[tuple[list[int], bool]]
    ) -> list[Any]:
        texts = self._tokenizer.batch_decode([ids for ids, _ in drawn], skip_special_tokens=True)
        return [
            text if isinstance(prompt.row["prompt"], str) else [dict(assistant(text))]
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _sample(self, batch: Sequence[Prompt]) -> list[tuple[list[int], bool]]:
        """Completions of each prompt, and whether each was cut short."""
        rows = [prompt.ids for prompt in batch for _ in range(self._settings.generations)]
        # Each batch has a seed of its own, so that a run that is resumed draws the same.
        numbers = f"{self._seed}:{[prompt.number for prompt in batch]}"
        seed = int.from_bytes(hashlib.sha256(numbers.encode()).digest()[:8]) >> 1
        device = input_device(self._model)
        cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        drawn: list[tuple[list[int], bool]] = []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            while len(drawn) < len(rows):
                part = self._alike(rows[len(drawn) :][: self._largest])
                try:
                    drawn += self._generate(part, device)
                    continue
                except torch.OutOfMemoryError as error:
                    if len(part) == 1:
                        raise _no_memory() from error
                # Outside the except clause: the error holds the tensors of the failed try.
                torch.cuda.empty_cache()
                self._largest = len(part) // 2
        return drawn

    def _alike(self, rows: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        """The first rows with equal room: padding of a long prompt would take that of others."""
        rooms = [self._room(len(row)) for row in rows]
        return rows[: sum(1 for _ in takewhile(lambda room: room == rooms[0], rooms))]

    def _room(self, width: int) -> int:
        room = self._settings.max_new_tokens
        return room if self._context is None else min(room, self._context - width)

    def _generate(
        self, rows: Sequence[tuple[int, ...]], device: torch.device
    ) -> list[tuple[list[int], bool]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        finish = _Finish(self._ends, self._settings.stop, self._tokenizer, width)
        with torch.no_grad():
            whole = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._generation_config(width),
                stopping_criteria=StoppingCriteriaList([finish]),
            )
        written = whole[:, width:].tolist()
        lengths = finish.lengths or [None] * len(rows)
        return [
            (row if length is None else row[:length], length is None)
            for row, length in zip(written, lengths, strict=True)
        ]

    def _generation_config(self, width: int) -> GenerationConfig:
        settings = self._settings
        return GenerationConfig(
            max_new_tokens=self._room(width),
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            pad_token_id=self._pad,
            eos_token_id=list(self._ends) or None,
            use_cache=True,
        )


def _no_memory() -> CaptureError:
    return CaptureError(
        "The device ran out of memory while the model wrote a single completion.",
        hint="Use a smaller --max-new-tokens, --dtype bfloat16 or --load-in 4bit, or sample with a "
        "serving engine and give --rollouts FILE.",
    )


def _batches(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


class _Finish(StoppingCriteria):  # type: ignore[misc]
    """Ends completions, and keeps where: padding may look like a token that was sampled.

    Args:
        ends: Tokens that end a completion.
        stop: Texts that do.
        tokenizer: The model's tokenizer.
        width: Tokens before the first that is sampled.
    """

    def __init__(
        self,
        ends: Sequence[int],
        stop: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        width: int,
    ) -> None:
        self._ends, self._width = torch.tensor(ends, dtype=torch.int64), width
        self._texts = StopStringCriteria(tokenizer, list(stop)) if stop else None
        self.lengths: list[int | None] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        self._ends = self._ends.to(input_ids.device)
        ended = torch.isin(input_ids[:, -1], self._ends)
        if self._texts is not None:
            ended = ended | self._texts(input_ids[:, self._width :], scores, **options)
        length = input_ids.shape[1] - self._width
        self.lengths = self.lengths or [None] * len(input_ids)
        for row, over in enumerate(ended.tolist()):
            if over and self.lengths[row] is None:
                self.lengths[row] = length
        return ended


@contextmanager
def _told_by_each(processes: Processes) -> Iterator[None]:
    """What is wrong with a prompt only the process knows that has it; the others do not say it."""
    try:
        yield
    except DataError as error:
        if processes.size == 1:
            raise
        raise RewardError(error.message, hint=error.hint) from error


@contextmanager
def _untouched(model: PreTrainedModel) -> Iterator[None]:
    """Sample in inference mode, by our settings alone, and put everything back."""
    training = {name: module.training for name, module in model.named_modules()}
    own = model.generation_config
    # What a checkpoint suggests for sampling must not leak into what is not set here.
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        for name, module in model.named_modules():
            module.training = training[name]


def rewards_of(settings: ObjectiveSettings, functions: Mapping[str, Any]) -> RewardProcess:
    """What judges completions.

    Args:
        settings: Names and weights of the rewards, and their time limit.
        functions: Functions of the Python API by the name that stands for them.

    Returns:
        The judge, not started.
    """
    return RewardProcess(
        [functions.get(name, name) for name in settings.rewards],
        weights=settings.reward_weights,
        timeout=settings.reward_timeout,
    )
