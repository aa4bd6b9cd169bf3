"""vLLM holds the longest prompt and its completion, and not much more."""

from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.rows.sample import Media, Sample
from vthink.components.grpo.vllm.limits import longest_sequence
from vthink.tests.unit.components.grpo.vllm.prompts import clip_of


def test_the_bound_is_above_every_prompt_and_near_the_longest(encoder: ChatEncoder) -> None:
    frames = {"num_frames": 8, "max_pixels": 6 * encoder.video.size_multiple**2}  # what `clip_of` makes
    encoder.video = encoder.video.model_copy(update=frames)
    samples = [
        Sample(
            id=str(n), media=Media(kind="video", uri="v.mp4"), question="Which way? " * n, options=("left", "right"),
            problem_type="multiple_choice", answer="A", source="test", split="train",
        )
        for n in (1, 40, 3)
    ]  # fmt: skip
    clip = clip_of(encoder)
    longest = max(len(encoder.encode(s.question, s.options, s.problem_type, clip)) for s in samples)
    assert longest + 100 <= longest_sequence(encoder, samples, 100) <= longest + 100 + 150
