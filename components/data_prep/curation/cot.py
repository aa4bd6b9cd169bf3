"""`cot` (Video-R1, arXiv 2503.21776): the teacher answers a question several times; traces whose format is right and
whose answer earns more than a threshold of the rule reward are kept."""

from __future__ import annotations

import asyncio

from .... import __version__
from ...common.rows.sample import Sample
from ...common.video.clip import Clip
from .calls import Calls
from .items import DropItemError, Item
from .model import Answer
from .replies import as_asked, checked_cot


async def sample_traces(item: Item, clip: Clip, calls: Calls) -> list[Sample]:
    """The row with each of its best traces.

    Raises:
        DropItemError: no trace earned enough.
        CallFailedError, EndpointUnusableError, StoppedError: see `CurationModel.ask`.
    """
    config, sample = calls.config, item.sample
    if sample is None:
        raise DropItemError("bad_segments", "cot needs questions, not captioned segments")
    prompt = calls.prompts.render("cot", question=as_asked(sample))
    answers = await asyncio.gather(
        *(calls.ask(calls.teacher, item, "cot", prompt, attempt=k, clip=clip) for k in range(config.num_traces)),
        return_exceptions=True,
    )
    if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
        raise failed[0]  # only now, when the other calls have ended and are journalled
    graded = [checked_cot(answer.text, sample) for answer in answers if isinstance(answer, Answer)]
    passed = sorted((g for g in graded if g[0] > config.min_reward), key=lambda g: -g[0])
    if not passed:
        best = max(reward for reward, _ in graded)
        raise DropItemError("low_reward", f"{config.num_traces} traces, the best earned {best:.2f}")
    rows = []
    for number, (reward, reasoning) in enumerate(passed[: config.max_kept], 1):
        provenance = {
            "method": "cot",
            "teacher": config.teacher.model,
            "prompts": calls.prompts.hashes(["cot"]),
            "attempts": config.num_traces,
            "verdict": "above the threshold",
            "reward": round(reward, 4),
            "pass_rate": len(passed) / config.num_traces,
            "vthink": __version__,
        }
        update = {
            "id": f"{sample.id}-trace{number}" if number > 1 else sample.id,
            "reasoning": reasoning,
            "metadata": {**sample.metadata, "curation": provenance},
        }
        rows.append(sample.model_copy(update=update))
    return rows
