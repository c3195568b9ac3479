"""Sample completions from the model, and judge them."""

from __future__ import annotations

import time

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.errors import DataError, RewardError
from hlscore.inputs.examples import cut
from hlscore.inputs.formats import ExampleSet
from hlscore.processes import Processes
from hlscore.rollouts.generation import Writer, untouched
from hlscore.rollouts.prompts import completions_of, prompts_of
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutJournal, RolloutSet
from hlscore.rollouts.rewards import RewardProcess
from hlscore.settings import ObjectiveSettings
from hlscore.steps import Progress


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
