"""A request is the trainer's own prompt: tokens, patches, cache keys, sampling."""

from dataclasses import replace

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.prompt import patchify
from vthink.components.grpo.vllm.request import make_request
from vthink.tests.unit.components.grpo.vllm.prompts import ORDER, SAMPLING, ask, clip_of, prompt_of


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_request_is_the_trainers_own_tokens_and_patches(encoder: ChatEncoder, kind: str) -> None:
    prompt = prompt_of(encoder, clip_of(encoder, kind))
    asked = ask(encoder, prompt)
    assert asked.token_ids == prompt.input_ids.tolist()
    assert torch.equal(torch.cat([item.patches for item in asked.items]), prompt.pixel_values)
    covered = [position for item in asked.items for position in range(item.offset, item.offset + item.length)]
    assert covered == prompt.mm_token_type_ids.nonzero()[:, 0].tolist()
    for item in asked.items:
        assert item.length * encoder.merge**2 == int(item.grid_thw.prod()) == len(item.patches)


def test_qwen2_5_vl_gets_one_video_with_its_time_and_qwen3_vl_one_image_per_time_that_it_reads(
    encoder: ChatEncoder,
) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    items = ask(encoder, prompt).items
    if encoder.family.time_in_text:
        assert [item.modality for item in items] == ["image"] * 4
        assert set(items[0].fields()) == {"pixel_values", "image_grid_thw"}
        assert items[0].fields()["image_grid_thw"].tolist() == [1, *prompt.grid_thw[1:].tolist()]
    else:
        (item,) = items
        fields = item.fields()
        assert set(fields) == {"pixel_values_videos", "video_grid_thw", "second_per_grid_ts"}
        assert torch.equal(fields["video_grid_thw"], prompt.grid_thw)
        assert fields["second_per_grid_ts"].item() == prompt.second_per_grid_s == pytest.approx(0.7)


def test_bytes_for_a_vllm_that_normalises_are_exactly_the_frames(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    prompt = prompt_of(encoder, clip)
    if encoder.normalisation["image"] != encoder.normalisation["video"]:
        with pytest.raises(UserError, match="mm_device_do_normalize"):
            ask(encoder, prompt, dtype=torch.uint8)
        return
    untouched, _ = patchify(clip.frames, [0.0] * 3, [1 / 255] * 3, encoder.patch, encoder.merge, encoder.temporal_patch)
    (item,) = ask(encoder, prompt, dtype=torch.uint8).items
    assert item.patches.dtype == torch.uint8
    assert torch.equal(item.patches.float(), untouched.round())


def test_a_shuffled_clip_has_keys_and_patches_of_its_own(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    ordered = ask(encoder, prompt_of(encoder, clip))
    shuffled = ask(encoder, encoder.with_clip(prompt_of(encoder, clip), clip.permuted(ORDER)))
    assert shuffled.token_ids == ordered.token_ids
    assert not {item.key for item in shuffled.items} & {item.key for item in ordered.items}
    for one, other in zip(ordered.items, shuffled.items, strict=True):
        assert not torch.equal(one.patches, other.patches)


def test_keys_depend_on_pixels_time_and_weights(encoder: ChatEncoder) -> None:
    clip = clip_of(encoder)
    prompt = prompt_of(encoder, clip)
    key = ask(encoder, prompt).items[0].key
    assert ask(encoder, prompt_of(encoder, clip)).items[0].key == key
    assert ask(encoder, prompt, salt="weights-2").items[0].key != key
    # The same frames over more seconds: the features are the same, but the positions in the cached prefix are not.
    slower = replace(prompt, second_per_grid_s=1.4)
    assert (ask(encoder, slower).items[0].key != key) is (not encoder.family.time_in_text)


def test_the_same_seed_and_key_give_the_same_request_and_others_another_seed(encoder: ChatEncoder) -> None:
    prompt = prompt_of(encoder, clip_of(encoder))
    first, again, other = ask(encoder, prompt), ask(encoder, prompt), ask(encoder, prompt, key=2)
    assert first.sampling == again.sampling
    # vLLM seeds completion i with seed + i: groups must not overlap.
    assert abs(first.sampling["seed"] - other.sampling["seed"]) > 1000
    reseeded = make_request(prompt, encoder, replace(SAMPLING, seed=6), 3, 1, "weights-1", torch.float32)
    assert reseeded.sampling["seed"] != first.sampling["seed"]


def test_only_the_end_of_turn_ends_a_completion_and_vision_tokens_are_suppressed(encoder: ChatEncoder) -> None:
    sampling = ask(encoder, prompt_of(encoder, clip_of(encoder))).sampling
    assert sampling["stop_token_ids"] == [encoder.eos_token_id]
    assert sampling["ignore_eos"]
    assert set(sampling["logit_bias"]) == set(encoder.vision_token_ids)
    assert (sampling["n"], sampling["max_tokens"], sampling["logprobs"]) == (3, 12, 0)
