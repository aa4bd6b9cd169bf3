"""The two methods of curation.

`hindsight` (Video-Thinker, arXiv 2510.23473): from captioned segments the teacher writes a question that needs several
of them; for a question without segments it looks at the video and writes captions of those that its answer rests on.
Knowing the answer it then writes a trace ("reverse curation"): segments with time, caption and thought, and the
reasoning. A judge that sees only the times and captions of the trace must find the answer; else the trace is written
again, a few times.

`cot` (Video-R1, arXiv 2503.21776): the teacher answers a question several times; traces whose format is right and whose
answer earns more than a threshold of the rule reward are kept.
"""

import asyncio
import functools
import math
import string
from collections.abc import Sequence

from .... import __version__
from ...common.answers.grading import is_correct
from ...common.answers.responses import parse_response
from ...common.rows.sample import Evidence, Sample
from ...common.video.clip import Clip
from . import replies
from .calls import CallRecord, Calls
from .items import DropItemError, Item

_BEYOND_END_S = 0.5
"""Segments of a data set may end so far behind the video's end, where rounding has put them; they are cut there."""


async def curate_in_hindsight(item: Item, clip: Clip, calls: Calls) -> list[Sample]:
    """The row with its trace. Raises DropItemError: nothing comes of it; CallFailedError, EndpointUnusableError,
    StoppedError: see `CurationModel.ask`."""
    config, prompts = calls.config, calls.prompts
    if clip.kind != "video":
        raise DropItemError("not_a_video", "an image has no segments")
    question, segments, steps, malformed = await _question_and_segments(item, clip, calls)
    about = {"segments": replies.numbered_segments(segments), **_told(question)}
    failed_captions, judged = None, None
    for attempt in range(config.max_regenerations + 1):
        prompt = prompts.render("trace", failed_captions=failed_captions, **about)
        check = functools.partial(replies.checked_trace, sample=question, segments=segments)
        row, unusable = await calls.usable(item, "trace", prompt, check, attempt)
        malformed += unusable
        seen = replies.numbered_segments(row.evidence)
        prompt = prompts.render("judge", segments=seen, question=replies.as_asked(question))
        judgement = await calls.ask(item, "judge", prompt, attempt, clip=clip if config.judge_sees_video else None)
        judged = parse_response(judgement.text).answer
        right = is_correct(question, judged)
        if right or (attempt == config.max_regenerations and config.when_never_right == "keep"):
            outcome = {"attempts": attempt + 1, "malformed": malformed, "verdict": "right" if right else "wrong"}
            answered = {"judge": config.judge.model, "judge_answer": None if judged is None else judged[:200]}
            return [_with_provenance(row, calls, [*steps, "trace", "judge"], **outcome, **answered)]
        failed_captions = [segment.caption for segment in row.evidence]
    detail = f"{config.max_regenerations + 1} traces; from the last the judge answered {judged!r:.80}"
    raise DropItemError("judge_wrong", detail)


async def _question_and_segments(
    item: Item, clip: Clip, calls: Calls
) -> tuple[Sample, tuple[Evidence, ...], list[str], int]:
    """What a trace is written from, the steps that it took, and the answers on the way that could not be used."""
    config, prompts = calls.config, calls.prompts
    segments = segments_inside(item.segments, clip.duration_s)
    if item.sample is None:
        if len(segments) < config.min_segments:
            detail = f"{len(segments)} captioned segments; {config.min_segments} are needed"
            raise DropItemError("bad_segments", detail)
        limits = {name: getattr(config, name) for name in ("min_segments", "min_options", "max_options")}
        prompt = prompts.render("question", segments=replies.numbered_segments(segments), **limits)
        question, malformed = await calls.usable(
            item, "question", prompt, lambda text: replies.checked_question(text, item.id, item.media, segments, config)
        )
        return question, segments, ["question"], malformed
    if segments:
        return item.sample, segments, [], 0
    prompt = prompts.render("captions", duration_s=clip.duration_s, **_told(item.sample))
    inside = functools.partial(replies.checked_captions, duration_s=clip.duration_s)
    segments, malformed = await calls.usable(item, "captions", prompt, inside, clip=clip)
    return item.sample, segments, ["captions"], malformed


def segments_inside(segments: Sequence[Evidence], duration_s: float) -> tuple[Evidence, ...]:
    """Segments of a source, cut at the video's end where they reach a little beyond it. Raises DropItemError: one of
    them is empty, lies outside, or has a caption that cannot be used."""
    kept = []
    for segment in segments:
        if segment.end_s > duration_s + _BEYOND_END_S:
            detail = f"a segment ends at {segment.end_s:g} s, the video already at {duration_s:.2f} s"
            raise DropItemError("bad_segments", detail)
        end_s = math.floor(min(segment.end_s, duration_s) * 100 + 1e-6) / 100
        start_s = round(segment.start_s, 2)
        if start_s >= end_s:
            raise DropItemError("bad_segments", f"a segment is empty ({segment.start_s:g} to {segment.end_s:g} s)")
        try:
            caption = replies.clean(segment.caption, "caption")
        except replies.UnusableError as error:
            raise DropItemError("bad_segments", str(error)) from None
        kept.append(Evidence(start_s=start_s, end_s=end_s, caption=caption))
    return tuple(sorted(kept, key=lambda segment: (segment.start_s, segment.end_s)))


def _told(sample: Sample) -> dict[str, str]:
    """What the teacher is told: the question with its options, and the true answer with the text of its option."""
    option = f". {sample.options[string.ascii_uppercase.index(sample.answer)]}" if sample.options else ""
    return {"question": replies.with_options(sample), "answer": sample.answer + option}


def _with_provenance(row: Sample, calls: Calls, steps: Sequence[str], **about: object) -> Sample:
    """The row, with how it was made in its metadata."""
    made = {"method": calls.config.method, "teacher": calls.config.teacher.model, "vthink": __version__}
    curation = {**made, "prompts": calls.prompts.hashes(steps), **about}
    return row.model_copy(update={"metadata": {**row.metadata, "curation": curation}})


async def sample_traces(item: Item, clip: Clip, calls: Calls) -> list[Sample]:
    """The row with each of its best traces. Raises DropItemError: no trace earned enough; CallFailedError,
    EndpointUnusableError, StoppedError: see `CurationModel.ask`."""
    config, sample = calls.config, item.sample
    if sample is None:
        raise DropItemError("bad_segments", "cot needs questions, not captioned segments")
    prompt = calls.prompts.render("cot", question=replies.as_asked(sample))
    pending = (calls.ask(item, "cot", prompt, attempt, clip=clip) for attempt in range(config.num_traces))
    answers = await asyncio.gather(*pending, return_exceptions=True)
    if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
        raise failed[0]  # only now, when the other calls have ended and are journalled
    graded = [replies.checked_cot(answer.text, sample) for answer in answers if isinstance(answer, CallRecord)]
    passed = sorted((g for g in graded if g[0] > config.min_reward), key=lambda g: -g[0])
    if not passed:
        best = max(reward for reward, _ in graded)
        raise DropItemError("low_reward", f"{config.num_traces} traces, the best earned {best:.2f}")
    rows = []
    verdict = {"attempts": config.num_traces, "verdict": "above the threshold"}
    for number, (reward, reasoning) in enumerate(passed[: config.max_kept], 1):
        name = f"{sample.id}-trace{number}" if number > 1 else sample.id
        row = sample.model_copy(update={"id": name, "reasoning": reasoning})
        earned = {"reward": round(reward, 4), "pass_rate": len(passed) / config.num_traces}
        rows.append(_with_provenance(row, calls, ["cot"], **verdict, **earned))
    return rows
