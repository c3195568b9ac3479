"""Completions that the model itself samples: batched, seeded, cut where each ends, and judged."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hlscore.errors import CaptureError, DataError, RewardError
from hlscore.inputs.examples import cut
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.model import input_device
from hlscore.inputs.tokens import (
    assistant,
    context_length,
    end_token_ids,
    naming_example,
    pad_token_id,
    prompt_ids,
)
from hlscore.memory import is_out_of_memory
from hlscore.processes import Processes
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutJournal, RolloutSet
from hlscore.rollouts.reward_worker import NOT_COLUMNS, Completions
from hlscore.rollouts.rewards import RewardProcess
from hlscore.settings import ObjectiveSettings
from hlscore.steps import Progress
from hlscore.wording import count

_JUDGED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to continue: its place in the data, the columns of its example, its token ids."""

    number: int
    row: Row
    ids: tuple[int, ...]


def prompts_of(
    examples: ExampleSet,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rewards: RewardProcess,
) -> tuple[list[Prompt], tuple[str, ...]]:
    """Prompts that can be continued and judged, each once, and notes about the others."""
    context = context_length(model)
    found: dict[tuple[int, ...], Prompt] = {}
    empty = long = 0
    for number, row in enumerate(examples.rows):
        with naming_example(examples.source, number):
            ids = tuple(prompt_ids(row["prompt"], tokenizer))
        empty += not ids
        long += context is not None and len(ids) >= context
        if ids and (context is None or len(ids) < context):
            found.setdefault(ids, Prompt(number=number, row=row, ids=ids))
    if not found:
        why = f"each fills the context of {context} tokens" if long else "all are empty"
        raise DataError(f"No prompt of '{examples.source}' can be continued: {why}.")
    kept = prompts = list(found.values())
    if rewards.builtin:
        kept = []
        for part in cut(prompts, _JUDGED_AT_ONCE):
            judged = rewards.judge(completions_of(part, [""] * len(part), [[]] * len(part)))
            kept += [prompt for prompt, one in zip(part, judged, strict=True) if one is not None]
    if not kept:
        raise DataError(
            f"No prompt of '{examples.source}' has an answer that the reward can judge.",
            hint="Check the column of answers (--column answer=NAME), or use another --reward.",
        )
    reasons = {
        f"no room in the context of {context} tokens": long,
        "empty": empty,
        "copies of others": len(examples.rows) - long - empty - len(prompts),
        "no answer that the reward can judge": len(prompts) - len(kept),
    }
    left_out = [f"{count(n, 'prompt')} left out: {why}." for why, n in reasons.items() if n]
    return kept, (*examples.notes, *left_out)


def completions_of(
    prompts: Sequence[Prompt], texts: Sequence[str], ids: list[list[int]]
) -> Completions:
    """Completions of prompts for rewards, each in the form of its prompt: text, or a message."""
    rows = [prompt.row for prompt in prompts]
    # Rows in memory need not have all columns.
    columns = sorted({name for row in rows for name in row} - {*NOT_COLUMNS})
    return Completions(
        prompts=[row["prompt"] for row in rows],
        completions=[
            text if isinstance(row["prompt"], str) else [dict(assistant(text))]
            for row, text in zip(rows, texts, strict=True)
        ],
        completion_ids=ids,
        columns={name: [row.get(name) for row in rows] for name in columns},
    )


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: ExampleSet,
    settings: ObjectiveSettings,
    rewards: RewardProcess,
    progress: Progress,
    *,
    seed: int,
    processes: Processes = Processes(),
    journal: RolloutJournal | None = None,
) -> RolloutSet:
    """Sample and judge the completions of every prompt, in the order of the data.

    Args:
        journal: Where finished groups are stored, if anywhere; those that are there are kept.
    """
    generations = settings.generations
    writer = Writer(model, tokenizer, settings, seed=seed)
    began = time.perf_counter()
    done = {} if journal is None else journal.load()
    earlier = 0.0 if journal is None else journal.seconds
    with rewards, untouched(model):
        prompts, notes = prompts_of(examples, tokenizer, model, rewards)
        batches = processes.share(cut(prompts, max(1, settings.generate_batch // generations)))
        progress.start("sampling", generations * sum(map(len, batches)), "completions")
        for batch in batches:
            if not all(prompt.number in done for prompt in batch):
                started = time.perf_counter()
                drafts = writer.write(batch)
                ids = [draft.ids for draft in drafts]
                texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
                completions = completions_of([draft.prompt for draft in drafts], texts, ids)
                try:
                    judged = rewards.judge(completions)
                except DataError as error:
                    if processes.size == 1:
                        raise
                    # Of data errors the main process alone is heard, and another may have met
                    # this one.
                    raise RewardError(error.message, hint=error.hint) from error
                rollouts = [
                    Rollout(
                        prompt=draft.prompt.row["prompt"],
                        prompt_ids=draft.prompt.ids,
                        completion=completion,
                        completion_ids=tuple(draft.ids),
                        reward=reward,
                        truncated=not draft.ended,
                    )
                    for draft, completion, reward in zip(
                        drafts, completions.completions, judged, strict=True
                    )
                ]
                groups = {
                    prompt.number: RolloutGroup(name=str(prompt.number), rollouts=tuple(own))
                    for prompt, own in zip(batch, cut(rollouts, generations), strict=True)
                }
                if journal is not None:
                    journal.append(groups, seconds=time.perf_counter() - started)
                done.update(groups)
            progress.advance(generations * len(batch))
    everywhere = {
        number: group for part in processes.gather(done) for number, group in part.items()
    }
    hung = sum(processes.gather(rewards.hung))
    if hung:
        notes = (*notes, f"A verifier timed out on {hung} completions: their reward is 0.")
    return RolloutSet(
        source=examples.source,
        groups=tuple(everywhere[number] for number in sorted(everywhere)),
        temperature=settings.temperature_value,
        notes=notes,
        seconds=earlier + time.perf_counter() - began,
    )


@dataclass(slots=True, kw_only=True)
class Draft:
    """A completion that is being written."""

    prompt: Prompt
    room: int  # most tokens that it may have
    ids: list[int] = field(default_factory=list)
    ended: bool = False  # whether it ended by itself, before that


class Writer:
    """Lets a model complete prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ObjectiveSettings,
        *,
        seed: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._settings, self._seed = settings, seed
        self._ends = end_token_ids(tokenizer, model)
        self._pad = pad_token_id(tokenizer, model)
        self._context = context_length(model)
        self._largest = max(1, settings.generate_batch)

    def write(self, prompts: Sequence[Prompt]) -> list[Draft]:
        """Write as many completions of each prompt as the settings say.

        Each set of prompts has draws of its own, so that a run that is resumed draws what it would
        have drawn.
        """
        drafts = [
            Draft(prompt=prompt, room=room_for(len(prompt.ids), self._context, self._settings))
            for prompt in prompts
            for _ in range(self._settings.generations)
        ]
        label = ",".join(str(prompt.number) for prompt in prompts)
        device = input_device(self._model)
        cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
        waiting, turn = drafts, 0
        with torch.random.fork_rng(devices=cuda):
            while waiting:
                start = 0
                while start < len(waiting):
                    part = waiting[start : start + self._largest]
                    seed = f"{self._seed}:{label}:{turn}:{start}".encode()
                    torch.manual_seed(int.from_bytes(hashlib.sha256(seed).digest()[:8]) >> 1)
                    if self._continue(part, device):
                        start += len(part)
                    else:
                        torch.cuda.empty_cache()
                        self._largest = len(part) // 2
                # Those beside a longer prompt had less room than their own in this turn.
                waiting = [item for item in waiting if not item.ended and len(item.ids) < item.room]
                turn += 1
        return drafts

    def _continue(self, drafts: Sequence[Draft], device: torch.device) -> bool:
        """Write all drafts on, if the memory suffices for them at a time."""
        rows = [[*draft.prompt.ids, *draft.ids] for draft in drafts]
        width = max(map(len, rows))
        room = min(draft.room - len(draft.ids) for draft in drafts)
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        ends = torch.tensor(self._ends, dtype=torch.int64, device=device)
        stop = list(self._settings.stop)
        texts = StopStringCriteria(self._tokenizer, stop) if stop else None
        # Tokens of every completion that stand before those that are sampled now.
        written = min(len(draft.ids) for draft in drafts)
        lengths: list[int | None] = [None] * len(rows)

        def finished(so_far: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
            """Keep where completions end: padding may look like a token that was sampled."""
            ended = torch.isin(so_far[:, -1], ends.to(so_far.device))
            if texts is not None:
                ended = ended | texts(so_far[:, width - written :], scores, **options)
            for row, over in enumerate(ended.tolist()):
                if over and lengths[row] is None:
                    lengths[row] = so_far.shape[1] - width
            return ended

        try:
            with torch.no_grad():
                whole = self._model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=GenerationConfig(
                        max_new_tokens=room,
                        do_sample=True,
                        temperature=self._settings.temperature_value,
                        top_p=self._settings.top_p,
                        top_k=self._settings.top_k,
                        pad_token_id=self._pad,
                        eos_token_id=list(self._ends) or None,
                        use_cache=True,
                    ),
                    stopping_criteria=StoppingCriteriaList([finished]),
                )
        except RuntimeError as error:
            if is_out_of_memory(error):
                if len(drafts) > 1:
                    return False
                raise CaptureError(
                    "The device ran out of memory while the model wrote a single completion.",
                    hint="Use a smaller --max-new-tokens, --dtype bfloat16 or --load-in 4bit, or "
                    "sample with a serving engine and give --rollouts FILE.",
                ) from error
            if "probability tensor" not in str(error):  # torch.multinomial has no type of its own
                raise
            raise CaptureError(
                "The model gives NaN or infinity instead of probabilities.",
                hint="float16 overflows easily: use --dtype bfloat16 or float32."
                if self._model.dtype == torch.float16
                else "Check the checkpoint for broken weights, or use a higher --temperature.",
            ) from error
        sampled = whole[:, width:].tolist()
        for draft, row, length in zip(drafts, sampled, lengths, strict=True):
            draft.ids += row if length is None else row[:length]
            draft.ended = length is not None
        return True


def room_for(prompt_tokens: int, context: int | None, settings: ObjectiveSettings) -> int:
    """Most tokens that a completion may have; `context` is `None` for a model without a limit."""
    room = settings.max_new_tokens
    return room if context is None else min(room, context - prompt_tokens)


@contextmanager
def untouched(model: PreTrainedModel) -> Iterator[None]:
    """Write in inference mode, by our settings alone, and put everything back."""
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
