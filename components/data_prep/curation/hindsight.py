"""`hindsight` (Video-Thinker, arXiv 2510.23473): a trace written by one who knows the answer, checked by one who sees
only its times and captions.

From captioned segments the teacher writes a question that needs several of them; for a question without segments it
looks at the video and writes captions of those that its answer rests on. Knowing the answer it then writes a trace
("reverse curation"): segments with time, caption and thought, and the reasoning. A judge that sees only the times and
captions of the trace must find the answer; else the trace is written again, a few times.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from .... import __version__
from ...common.answers.grading import is_correct
from ...common.answers.responses import parse_response
from ...common.rows.sample import Evidence, Sample
from ...common.video.clip import Clip
from .calls import Calls
from .items import DropItemError, Item
from .replies import (
    UnusableError,
    as_asked,
    checked_captions,
    checked_question,
    checked_trace,
    clean,
    numbered_segments,
    with_options,
)

_BEYOND_END_S = 0.5
"""Segments of a data set may end so far behind the video's end, where rounding has put them; they are cut there."""


async def curate_in_hindsight(item: Item, clip: Clip, calls: Calls) -> Sample:
    """The row with its trace.

    Raises:
        DropItemError: nothing comes of it.
        CallFailedError, EndpointUnusableError, StoppedError: see `CurationModel.ask`.
    """
    config, prompts, judge = calls.config, calls.prompts, calls.judge
    assert judge is not None
    if clip.kind != "video":
        raise DropItemError("not_a_video", "an image has no segments")
    question, segments, steps, malformed = await _question_and_segments(item, clip, calls)
    question_text, answer = with_options(question), _in_words(question)
    failed_captions, judged = None, None
    for attempt in range(config.max_regenerations + 1):
        prompt = prompts.render(
            "trace",
            segments=numbered_segments(segments),
            question=question_text,
            answer=answer,
            failed_captions=failed_captions,
        )
        row, unusable = await calls.usable(
            item, "trace", prompt, lambda text: checked_trace(text, question, segments), attempt=attempt
        )
        malformed += unusable
        prompt = prompts.render("judge", segments=numbered_segments(row.evidence), question=as_asked(question))
        shown = clip if config.judge_sees_video else None
        judgement = await calls.ask(judge, item, "judge", prompt, attempt=attempt, clip=shown)
        judged = parse_response(judgement.text).answer
        right = is_correct(question, judged)
        if right or (attempt == config.max_regenerations and config.when_never_right == "keep"):
            provenance = {
                "method": "hindsight",
                "teacher": config.teacher.model,
                "judge": config.judge.model,
                "prompts": prompts.hashes([*steps, "trace", "judge"]),
                "attempts": attempt + 1,
                "malformed": malformed,
                "verdict": "right" if right else "wrong",
                "judge_answer": None if judged is None else judged[:200],
                "vthink": __version__,
            }
            return row.model_copy(update={"metadata": {**row.metadata, "curation": provenance}})
        failed_captions = [segment.caption for segment in row.evidence]
    raise DropItemError(
        "judge_wrong", f"{config.max_regenerations + 1} traces; from the last the judge answered {judged!r:.80}"
    )


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
        prompt = prompts.render("question", segments=numbered_segments(segments), **limits)
        question, malformed = await calls.usable(
            item, "question", prompt, lambda text: checked_question(text, item.id, item.media, segments, config)
        )
        return question, segments, ["question"], malformed
    if segments:
        return item.sample, segments, [], 0
    prompt = prompts.render(
        "captions", question=with_options(item.sample), answer=_in_words(item.sample), duration_s=clip.duration_s
    )
    segments, malformed = await calls.usable(
        item, "captions", prompt, lambda text: checked_captions(text, clip.duration_s), clip=clip
    )
    return item.sample, segments, ["captions"], malformed


def segments_inside(segments: Sequence[Evidence], duration_s: float) -> tuple[Evidence, ...]:
    """Segments of a source, cut at the video's end where they reach a little beyond it.

    Raises:
        DropItemError: one of them is empty, lies outside, or has a caption that cannot be used.
    """
    kept = []
    for segment in segments:
        if segment.end_s > duration_s + _BEYOND_END_S:
            raise DropItemError(
                "bad_segments", f"a segment ends at {segment.end_s:g} s, the video already at {duration_s:.2f} s"
            )
        end_s = math.floor(min(segment.end_s, duration_s) * 100 + 1e-6) / 100
        start_s = round(segment.start_s, 2)
        if start_s >= end_s:
            raise DropItemError("bad_segments", f"a segment is empty ({segment.start_s:g} to {segment.end_s:g} s)")
        try:
            caption = clean(segment.caption, "caption")
        except UnusableError as error:
            raise DropItemError("bad_segments", str(error)) from None
        kept.append(Evidence(start_s=start_s, end_s=end_s, caption=caption))
    return tuple(sorted(kept, key=lambda segment: (segment.start_s, segment.end_s)))


def _in_words(sample: Sample) -> str:
    """The true answer, with the text of its option."""
    if not sample.options:
        return sample.answer
    return f"{sample.answer}. {sample.options[string.ascii_uppercase.index(sample.answer)]}"
