"""How long a sequence vLLM must hold."""

import heapq
from collections.abc import Sequence

from ...common.model.chat import ChatEncoder
from ...common.rows.sample import Sample

_LONGEST_TEXTS = 256  # so many questions, the longest in characters, are tokenised
_MARGIN = 64  # for tokens around the media, and times between them
_LATEST_S = 35_999.9  # a time of many digits, where times are written into the prompt


def longest_sequence(encoder: ChatEncoder, samples: Sequence[Sample], max_new_tokens: int) -> int:
    """A bound on prompt and completion, in tokens: the most that frames can take, the longest text, and the answer."""
    video = encoder.video
    frames = video.num_frames or video.max_frames
    times = -(-frames // encoder.temporal_patch)
    media = encoder.family.video_text(video.max_pixels // (encoder.patch * encoder.merge) ** 2, [_LATEST_S] * times)
    texts = heapq.nlargest(
        _LONGEST_TEXTS, samples, key=lambda sample: len(sample.question) + sum(map(len, sample.options))
    )
    longest_text = max(len(encoder.encode_blind(s.question, s.options, s.problem_type)) for s in texts)
    media_length = len(encoder.tokenizer(media, add_special_tokens=False)["input_ids"])
    return longest_text + media_length + _MARGIN + max_new_tokens
