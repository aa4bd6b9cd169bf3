"""Rollouts: shuffled frames, groups without signal, rewards of one's own, another engine."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.rows.prepared import PreparedSample, PreparedSet
from vthink.components.grpo import rollouts as rollouts_module
from vthink.components.grpo.config import GRPOConfig, VLLMConfig
from vthink.components.grpo.rewards import Group
from vthink.components.grpo.rollouts import Prefetcher, frame_order
from vthink.components.grpo.trainer import VideoGRPOTrainer
from vthink.components.grpo.vllm.answer import SampledCompletion
from vthink.tests.unit.components.grpo.tiny_training import (
    BREVITY,
    SETTINGS,
    Build,
    G,
    inputs_for,
    roll_out,
    rows_of_kind,
)


def test_clips_are_decoded_ahead_and_a_stall_is_named(prepared: PreparedSet) -> None:
    split = prepared.split("train")
    gate, asked = threading.Event(), []

    class Slow:
        samples = split.samples

        def __getitem__(self, row: int) -> PreparedSample:
            asked.append(row)
            gate.wait(5)
            return split[row]

    prefetcher = Prefetcher(Slow(), workers=2, timeout_s=0.05)  # type: ignore[arg-type]
    prefetcher.announce([0, 0, 1])
    with pytest.raises(UserError, match=r"row 0 .* was not decoded within 0.05 s"):
        prefetcher.take([0])
    gate.set()
    prefetcher.timeout_s = 5
    assert [item.sample.id for item in prefetcher.take([1, 2])] == [split.samples[1].id, split.samples[2].id]
    assert asked.count(1) == 1  # it was taken from what had been announced


def test_a_row_that_was_announced_long_ago_is_still_there_when_it_is_needed(prepared: PreparedSet) -> None:
    split = prepared.split("train")

    class Many:
        samples = split.samples

        def __getitem__(self, row: int) -> PreparedSample:
            return split[row % 3]

    prefetcher = Prefetcher(Many(), workers=2, timeout_s=60)  # type: ignore[arg-type]
    prefetcher.announce(range(150))
    assert len(prefetcher.take([0, 200, 201])) == 3


def test_a_row_that_is_needed_twice_is_decoded_once(prepared: PreparedSet) -> None:
    split = prepared.split("train")
    for workers in (0, 2):
        taken = Prefetcher(split, workers, timeout_s=60).take([1, 2, 1])
        assert [item.sample.id for item in taken] == [split.samples[row].id for row in (1, 2, 1)]


def test_shuffled_rollouts_see_the_same_frames_in_another_order(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []
    real = rollouts_module.sample

    def recording(model: Any, encoder: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(list(prompts))
        return real(model, encoder, prompts, *args, **kwargs)

    monkeypatch.setattr(rollouts_module, "sample", recording)
    trainer = build()
    videos, images = rows_of_kind(prepared, "video", 2), rows_of_kind(prepared, "image", 1)
    rollouts = roll_out(trainer, [*videos, *images])
    [prompts] = asked  # one call
    ordered, shuffled = prompts[:3], prompts[3:]
    assert len(shuffled) == 2  # the image has no order
    assert [len(group) for group in rollouts.completions] == [G, G, G]
    assert [len(group.shuffled_texts) for group in rollouts.groups] == [G // 2, G // 2, 0]
    for row, plain, other in zip(videos, ordered, shuffled, strict=False):
        clip = prepared.split("train")[row].clip
        order = frame_order(0, 0, row, len(clip.frames))
        assert sorted(order) == list(range(len(clip.frames)))
        assert torch.equal(other.input_ids, plain.input_ids)
        # What generation was given is the clip with its frames permuted before temporal patches are made …
        expected = trainer.encoder.with_clip(plain, clip.permuted(order.tolist()))
        assert torch.equal(other.pixel_values, expected.pixel_values)
        # … which is neither the ordered clip nor the ordered clip's patches in another order.
        assert not torch.equal(other.pixel_values, plain.pixel_values)
        patches = {tuple(p.flatten().tolist()) for p in plain.pixel_values.view(len(clip.frames) // 2, -1)}
        assert not all(
            tuple(p.flatten().tolist()) in patches for p in other.pixel_values.view(len(clip.frames) // 2, -1)
        )


def test_frame_orders_are_permutations_never_the_identity_and_differ_between_steps() -> None:
    orders = [frame_order(0, step, 1, 2).tolist() for step in range(20)]
    assert orders == [[1, 0]] * 20
    assert frame_order(0, 0, 0, 1).tolist() == [0]
    assert len({tuple(frame_order(0, step, 1, 8)) for step in range(20)}) == 20
    assert np.array_equal(frame_order(3, 4, 5, 8), frame_order(3, 4, 5, 8))


def test_groups_without_signal_are_tried_again_with_other_prompts_or_left_out(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    hopeless = prepared.split("train").samples[rows[0]].id
    real = rollouts_module.score_group

    def some_signal(group: Group, *args: Any) -> torch.Tensor:
        values = torch.zeros_like(real(group, *args))
        if group.sample.id != hopeless:
            values[0, 0] = 1.0
        return values

    monkeypatch.setattr(rollouts_module, "score_group", some_signal)
    dropped = build(dynamic_sampling=1, rows=[rows[0]])  # the only other prompt is the same one
    generated = dropped.generate_batch(inputs_for(rows))
    counted = generated.loss_mask.sum(1)
    assert counted[:G].tolist() == [0] * G
    assert bool((counted[G:] > 0).all())
    assert int(generated.num_loss_tokens) == int(counted.sum())
    replaced = roll_out(build(dynamic_sampling=3, rows=rows[1:]), rows)
    assert replaced.without_signal == []
    assert replaced.items[0].sample.id != hopeless
    kept = roll_out(build(rows=rows), rows)
    assert kept.without_signal == [0]


def test_a_truncated_completion_is_left_out_of_the_loss_when_asked(build: Build, prepared: PreparedSet) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    plain, masked = build(max_new_tokens=3), build(max_new_tokens=3, mask_truncated=True)
    assert bool((plain.generate_batch(inputs_for(rows)).loss_mask.sum(1) > 0).all())
    generated = masked.generate_batch(inputs_for(rows))
    ended = (generated.completion_ids == masked.encoder.eos_token_id).any(1)
    assert (generated.loss_mask.sum(1) > 0).tolist() == ended.tolist()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda group: 1 / 0, "reward test_trainer_rewards:broken failed on sample .*ZeroDivisionError"),
        (lambda group: [1.0], "returned .* for the 4 completions of sample"),
        (lambda group: [float("nan")] * 4, "returned .*nan"),
    ],
)
def test_a_reward_that_fails_or_is_no_reward_stops_the_training_by_name(
    build: Build, prepared: PreparedSet, reward: Any, message: str
) -> None:
    import sys

    sys.modules["test_trainer_rewards"].broken = reward  # type: ignore[attr-defined]
    trainer = build(rewards={"extra": {"test_trainer_rewards:broken": 1.0}})
    with pytest.raises(UserError, match=message):
        roll_out(trainer, rows_of_kind(prepared, "video", 1))


def test_a_reward_that_does_not_exist_is_refused_before_training(build: Build) -> None:
    with pytest.raises(UserError, match=r"grpo\.rewards\.extra: reward 'no_such_module:reward': cannot import"):
        build(rewards={"extra": {"no_such_module:reward": 1.0}})
    with pytest.raises(ValueError, match="not of the form"):
        GRPOConfig(**(SETTINGS | {"rewards": {"extra": {"brevity": 1.0}}}))
    with pytest.raises(ValueError, match="same name"):
        GRPOConfig(**(SETTINGS | {"rewards": {"extra": {"my_module:format": 1.0}}}))


class PlaysVLLM:
    """Stands in for `VLLMEngine`, which needs vLLM: our engine's completions, each log-probability ``gap`` lower."""

    is_policy = False

    def __init__(self, trainer: VideoGRPOTrainer, gap: float) -> None:
        self.trainer, self.gap, self.asked = trainer, gap, []  # type: ignore[var-annotated]

    def policy(self, step: int) -> Any:
        return nullcontext()

    def generate(self, prompts: Any, sampling: Sampling, counts: Any, keys: Any) -> list[list[SampledCompletion]]:
        trainer, groups = self.trainer, []
        self.asked.append((list(prompts), list(counts)))
        for prompt, n, key in zip(prompts, counts, keys, strict=True):
            (group,) = sample(trainer.model, trainer.encoder, [prompt], sampling, n, keys=[key])
            with torch.no_grad():
                values, _ = trainer.log_probs.plain_forward(
                    trainer.model, [prompt] * len(group), [c.token_ids for c in group]
                )
            parts = values.split([len(c.token_ids) for c in group])
            groups.append(
                [
                    SampledCompletion(
                        token_ids=c.token_ids,
                        text=c.text,
                        finish_reason=c.finish_reason,
                        log_probs=(part - self.gap).tolist(),
                    )
                    for c, part in zip(group, parts, strict=True)
                ]
            )
        return groups


def test_rollouts_of_another_engine_are_weighted_by_how_far_its_probabilities_are_from_the_trainers(
    build: Build, prepared: PreparedSet
) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    losses = {}
    for gap in (0.0, 0.1, 5.0):
        trainer = build(vllm=None, kl_coefficient=0.0, rewards=BREVITY)
        trainer.settings = trainer.settings.model_copy(update={"vllm": VLLMConfig(importance_cap=2.0)})
        trainer.generator.engine = engine = PlaysVLLM(trainer, gap)
        batch = trainer.generate_batch(inputs_for(rows))
        [(prompts, counts)] = engine.asked  # ordered and shuffled in one call
        assert counts == [G] * 3 + [G // 2] * 3
        assert not torch.equal(prompts[0].pixel_values, prompts[3].pixel_values)
        # Positive advantages only, so that the weighted loss is not zero.
        losses[gap] = trainer.compute_loss(trainer.model, replace(batch, advantages=torch.ones(3 * G))).item()
        assert trainer._metrics["train"]["grpo/sampler_gap"][-1] == pytest.approx(gap, abs=1e-4)
    assert losses[0.0] == pytest.approx(-1.0, rel=1e-4)
    assert losses[0.1] == pytest.approx(-np.exp(0.1), rel=1e-4)
    assert losses[5.0] == pytest.approx(-2.0, rel=1e-4)  # the cap
