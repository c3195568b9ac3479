"""Sample completions of prompts from the model, and judge them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, RewardError
from hlscore.inputs.examples import cut
from hlscore.inputs.formats import ExampleSet, Row
from hlscore.inputs.tokens import assistant, context_length, naming_example, prompt_ids
from hlscore.processes import Processes
from hlscore.rollouts.generation import Writer, untouched
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutJournal, RolloutSet
from hlscore.rollouts.reward_worker import NOT_COLUMNS, Completions
from hlscore.rollouts.rewards import RewardProcess
from hlscore.settings import ObjectiveSettings
from hlscore.steps import Progress

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
    """Tokenize prompts, each once.

    Returns:
        The prompts that leave room for a completion, and whose answers built-in verifiers can
        judge, and notes about the others.
    """
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
        f"they fill the context of {context} tokens": long,
        "they are empty": empty,
        "they are copies of others": len(examples.rows) - long - empty - len(prompts),
        "the reward cannot judge their answers": len(prompts) - len(kept),
    }
    left_out = [f"{n} prompts were left out: {why}." for why, n in reasons.items() if n]
    return kept, (*examples.notes, *left_out)


def completions_of(
    prompts: Sequence[Prompt], texts: Sequence[str], ids: list[list[int]]
) -> Completions:
    """Completions of prompts for rewards, each in the form of its prompt: text, or a message."""
    given = [prompt.row["prompt"] for prompt in prompts]
    # Rows in memory need not have all columns.
    columns = dict.fromkeys(name for prompt in prompts for name in prompt.row)
    return Completions(
        prompts=given,
        completions=[
            text if isinstance(prompt, str) else [dict(assistant(text))]
            for prompt, text in zip(given, texts, strict=True)
        ],
        completion_ids=ids,
        columns={
            name: [prompt.row.get(name) for prompt in prompts]
            for name in columns
            if name not in NOT_COLUMNS
        },
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
    processes: Processes = Processes(),  # noqa: B008 - frozen
    journal: RolloutJournal | None = None,
    resume: bool = False,
) -> RolloutSet:
    """Sample and judge the completions of every prompt, in the order of the data.

    Args:
        journal: Where finished groups are stored, if anywhere.
        resume: Whether to continue with the groups that are stored there.
    """
    count = settings.generations
    writer = Writer(model, tokenizer, settings, seed=seed)
    began = time.perf_counter()
    done = journal.load() if journal is not None and resume else {}
    earlier = 0.0 if journal is None else journal.seconds
    with rewards, untouched(model):
        prompts, notes = prompts_of(examples, tokenizer, model, rewards)
        own = processes.share(cut(prompts, max(1, settings.generate_batch // count)))
        progress.start("sampling", count * sum(map(len, own)), "completions")
        for batch in own:
            if not all(prompt.number in done for prompt in batch):
                started = time.perf_counter()
                repeated = [prompt for prompt in batch for _ in range(count)]
                numbers = ",".join(str(prompt.number) for prompt in batch)
                drafts = writer.write([prompt.ids for prompt in repeated], numbers)
                ids = [draft.ids for draft in drafts]
                texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
                completions = completions_of(repeated, texts, ids)
                try:
                    judged = rewards.judge(completions)
                except DataError as error:
                    if processes.size == 1:
                        raise
                    # Of data errors the main process alone is heard, and another may have met
                    # this one.
                    raise RewardError(error.message, hint=error.hint) from error
                rollouts = tuple(
                    Rollout(
                        prompt=prompt.row["prompt"],
                        prompt_ids=prompt.ids,
                        completion=completion,
                        completion_ids=tuple(draft.ids),
                        reward=reward,
                        truncated=not draft.ended,
                    )
                    for prompt, draft, completion, reward in zip(
                        repeated, drafts, completions.completions, judged, strict=True
                    )
                )
                groups = {
                    prompt.number: RolloutGroup(
                        name=str(prompt.number), rollouts=rollouts[place * count :][:count]
                    )
                    for place, prompt in enumerate(batch)
                }
                if journal is not None:
                    journal.append(groups, seconds=time.perf_counter() - started)
                done.update(groups)
            progress.advance(count * len(batch))
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
