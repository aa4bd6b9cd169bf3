"""Inputs that vLLM prepares by itself give what training saw: frames through its processor, and text alone."""

from __future__ import annotations

from typing import Any

import pytest
from vthink.components.common.model.generation import sample
from vthink.tests.vllm.subject import GREEDY, OPTIONS, QUESTION, Item, Subject


@pytest.fixture
def llm(subject: Subject) -> Any:
    """The real engine in this process."""
    if subject.part == "played" or subject.mode == "server":
        return None
    subject.generate([], step=0)  # the policy's weights
    return subject.engine.vllm._engine  # type: ignore[attr-defined]


def tokens(llm: Any, prompts: list[dict[str, Any]], subject: Subject) -> list[list[int]]:
    from vllm import SamplingParams

    bias = dict.fromkeys(subject.encoder.vision_token_ids, -100.0)
    sampling = SamplingParams(temperature=0, max_tokens=GREEDY.max_new_tokens, logit_bias=bias)
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, sampling, use_tqdm=False)]


def test_frames_through_vllms_processor(
    llm: Any, subject: Subject, items: list[Item], request: pytest.FixtureRequest
) -> None:
    if llm is None:
        return
    if subject.encoder.family.time_in_text:
        reason = "V14: vLLM 0.32, like transformers 5.17, keeps a pair of vision tokens around Qwen3-VL's timed blocks"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    prompts = []
    for item in items:
        text = subject.encoder.render(QUESTION, OPTIONS, "multiple_choice", item.clip.kind)
        if item.clip.kind == "image":
            prompts.append({"prompt": text, "multi_modal_data": {"image": item.clip.frames[0]}})
            continue
        count, fps = len(item.clip.frames), item.clip.fps
        about = {"total_num_frames": count, "fps": fps, "frames_indices": list(range(count)), "duration": count / fps}
        about |= {"video_backend": "opencv", "do_sample_frames": False}
        prompt = {"prompt": text, "multi_modal_data": {"video": [(item.clip.frames, about)]}}
        if subject.encoder.family.time_in_text:  # whose budget is for all frames together, as `vllm_arguments` says
            video = subject.encoder.video
            edges = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels * count}
            prompt["mm_processor_kwargs"] = {"size": edges}
        prompts.append(prompt)
    ours = sample(subject.model, subject.encoder, [item.prompt for item in items], GREEDY)
    assert tokens(llm, prompts, subject) == [group[0].token_ids for group in ours]


def test_text_alone(llm: Any, subject: Subject) -> None:
    if llm is None:
        return
    prompts = [subject.encoder.encode_blind(f"{QUESTION} {n}", OPTIONS, "multiple_choice") for n in range(8)]
    ours = sample(subject.model, subject.encoder, prompts, GREEDY, blind=True)
    theirs = tokens(llm, [{"prompt_token_ids": prompt.input_ids.tolist()} for prompt in prompts], subject)
    assert theirs == [group[0].token_ids for group in ours]
