"""The GRPO trainer on a real tiny model and real prepared videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer
from vthink.components.common.config import ConfigError
from vthink.components.common.errors import UserError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.prompt import BlindInputError
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSample, PreparedSet
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.arguments import trainer_arguments
from vthink.components.common.training.callbacks import CheckpointCallback
from vthink.components.common.training.checkpoints import CheckpointStore
from vthink.components.common.video.clip import Clip
from vthink.components.grpo.config import BUILT_IN_REWARDS, GRPOConfig, VLLMConfig
from vthink.components.grpo.prefetch import DataStallError, Prefetcher
from vthink.components.grpo.rewards import Group, GroupRewards, RewardError, group_advantages
from vthink.components.grpo.rollouts import frame_order, prompt_rows
from vthink.components.grpo.trainer import DivergedError, VideoGRPOTrainer
from vthink.components.grpo.vllm.answer import SampledCompletion

G = 4
SETTINGS: dict[str, Any] = {
    "num_generations": G,
    "prompts_per_step": 3,
    "max_new_tokens": 12,
    "max_steps": 4,
    "top_p": 1.0,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "kl_coefficient": 0.05,
    "gradient_checkpointing": False,
    "rewards": {"temporal": {}},
    "save_every_steps": 2,
    "log_every_steps": 1,
    "validation": {"every_steps": 2, "num_items": 4, "max_new_tokens": 8},
    "rollout_table_every_steps": 1,
}
Build = Callable[..., VideoGRPOTrainer]


@pytest.fixture
def build(prepared: PreparedSet, storage: Storage, tmp_path: Path) -> Build:
    def make(
        folder: str = "run", rows: list[int] | None = None, optimizer: str = "adamw_torch_fused", **changes: Any
    ) -> VideoGRPOTrainer:
        settings = GRPOConfig(**(SETTINGS | changes))
        model, processor = build_tiny(TinyModelConfig(), prepared.video, 0)
        start = tmp_path / "start"
        model.save_pretrained(start)  # the reference model is loaded from here
        model = type(model).from_pretrained(start, dtype=torch.float32)
        encoder = ChatEncoder(processor, "compact/1", prepared.video, tokens_per_second(model))
        split, held_out = prepared.split("train"), prepared.split("validation")
        store = CheckpointStore(storage, f"{storage.config.root_uri}{folder}/", tmp_path / folder)
        batch = settings.prompts_per_step * G
        arguments = TRLConfig(
            **trainer_arguments(settings, store.folder, True),
            per_device_train_batch_size=batch,
            num_generations=G,
            max_completion_length=settings.max_new_tokens,
            beta=settings.kl_coefficient,
            epsilon_high=settings.epsilon_high,
            num_iterations=settings.num_iterations,
            loss_type="grpo" if settings.loss == "gspo" else settings.loss,
            importance_sampling_level="sequence" if settings.loss == "gspo" else "token",
            optim=optimizer,
        )
        trainer = VideoGRPOTrainer(
            model=model,
            args=arguments,
            train_dataset=prompt_rows(rows if rows is not None else list(range(len(split)))),
            eval_dataset=prompt_rows([0]),
            processing_class=processor,
            reward_funcs=[lambda **_: [0.0]],
            callbacks=[CheckpointCallback(store)],
            settings=settings,
            encoder=encoder,
            split=split,
            held_out=held_out,
            asked=range(4),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # as within `train`
        return trainer

    return make


def inputs_for(rows: list[int]) -> list[dict[str, Any]]:
    return [{"prompt": "", "row": row} for row in rows for _ in range(G)]


def rows_of_kind(prepared: PreparedSet, kind: str, count: int) -> list[int]:
    return [i for i, s in enumerate(prepared.split("train").samples) if s.media.kind == kind][:count]


def plain_log_probs(trainer: VideoGRPOTrainer, generated: dict[str, Any]) -> torch.Tensor:
    """(B, C) log-probabilities row by row through the model's ordinary forward, no batch, no fused head."""
    rows = []
    for index, prompt in enumerate(generated["prompts"]):
        length = int(generated["completion_mask"][index].sum())
        completion = generated["completion_ids"][index, :length].tolist()
        batch = trainer.encoder.collate([prompt], [completion])
        logits = trainer.model(**batch, use_cache=False).logits[0, len(prompt) - 1 : -1]
        picked = torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(picked, (0, generated["completion_ids"].shape[1] - length)))
    return torch.stack(rows)


def test_log_probabilities_see_the_pixels_and_stock_trl_does_not(build: Build, prepared: PreparedSet) -> None:
    trainer = build()
    rows = rows_of_kind(prepared, "video", 2) + rows_of_kind(prepared, "image", 1)
    generated = trainer._generate_and_score_completions(inputs_for(rows))
    ids = torch.cat([generated["prompt_ids"], generated["completion_ids"]], 1)
    mask = torch.cat([generated["prompt_mask"], generated["completion_mask"]], 1)
    keep, seen = generated["completion_ids"].shape[1], generated["completion_mask"].bool()
    trainer._rows = generated["prompts"]
    with torch.no_grad():
        ours, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)
        plain = plain_log_probs(trainer, generated)
        assert (ours - plain)[seen].abs().max() < 1e-5
        # The controls: stock TRL's forward, which has no pixels; and the pixels of another video.
        blind, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, keep)
        assert (blind - plain)[seen].abs().max() > 1e-2
        media = trainer.encoder.media
        trainer.encoder.media = lambda prompts: (
            media(prompts)
            | {  # type: ignore[method-assign]
                "pixel_values_videos": media(prompts)["pixel_values_videos"].flip(0)
            }
        )
        swapped, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)
        assert (swapped - plain)[seen].abs().max() > 1e-2


def test_a_forward_without_pixels_or_with_another_rows_pixels_is_refused(build: Build, prepared: PreparedSet) -> None:
    trainer = build()
    generated = trainer._generate_and_score_completions(inputs_for(rows_of_kind(prepared, "video", 3)))
    ids = torch.cat([generated["prompt_ids"], generated["completion_ids"]], 1)
    mask = torch.cat([generated["prompt_mask"], generated["completion_mask"]], 1)
    keep = generated["completion_ids"].shape[1]
    trainer._rows = None
    with pytest.raises(BlindInputError, match="without the pixels"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)
    with pytest.raises(BlindInputError, match="without the pixels"):
        trainer._compute_loss(trainer.model, generated | {"prompts": generated["prompts"][:-1]})
    other = prepared.split("train")[rows_of_kind(prepared, "image", 1)[0]]
    trainer._rows = [trainer.encoder.encode_sample(other)] * len(ids)
    with pytest.raises(BlindInputError, match="not the prompt"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)


def test_shuffled_rollouts_see_the_same_frames_in_another_order(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vthink.components.grpo.trainer as module

    asked: list[list[Any]] = []
    real = module.sample

    def recording(model: Any, encoder: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(list(prompts))
        return real(model, encoder, prompts, *args, **kwargs)

    monkeypatch.setattr(module, "sample", recording)
    trainer = build()
    videos, images = rows_of_kind(prepared, "video", 2), rows_of_kind(prepared, "image", 1)
    rollouts = trainer._roll_out([*videos, *images])
    ordered, shuffled = asked
    assert len(ordered) == 3
    assert len(shuffled) == 2  # the image has no order
    assert [len(group) for group in rollouts.completions] == [G, G, G]
    assert [len(group) for group in rollouts.shuffled] == [G // 2, G // 2, 0]
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


def test_advantages_are_taken_within_each_prompts_group(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vthink.components.grpo.trainer as module

    # Groups of different level and spread: statistics over all of them would give other advantages.
    drawn = [
        10.0**i * torch.rand(G, len(BUILT_IN_REWARDS), generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    earned = iter([GroupRewards(components=r, accuracy=r[:, 0], shuffled_accuracy=torch.tensor([])) for r in drawn])
    monkeypatch.setattr(module, "group_rewards", lambda *_: next(earned))
    generated = build()._generate_and_score_completions(inputs_for(rows_of_kind(prepared, "video", 3)))
    expected = torch.cat([group_advantages(rewards.sum(-1)) for rewards in drawn])
    assert torch.allclose(generated["advantages"], expected)
    assert not torch.allclose(group_advantages(torch.cat(drawn).sum(-1)), expected)  # the control


def test_a_group_spread_over_processes_is_refused(build: Build) -> None:
    with pytest.raises(RuntimeError, match="multiple of G"):
        build()._generate_and_score_completions([{"prompt": "", "row": row} for row in (0, 1, 0, 1)])


def test_permuted_rewards_keep_a_groups_rewards_but_not_their_owners(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vthink.components.grpo.trainer as module

    rewards = torch.arange(G * len(BUILT_IN_REWARDS), dtype=torch.float32).view(G, -1)
    monkeypatch.setattr(
        module,
        "group_rewards",
        lambda *_: GroupRewards(components=rewards, accuracy=rewards[:, 0], shuffled_accuracy=torch.tensor([])),
    )
    rows = rows_of_kind(prepared, "video", 3)
    plain, control = build(), build(permute_rewards=True)
    rollouts = plain._roll_out(rows)
    results = []
    for trainer in (plain, control):
        trainer._score(rollouts)
        trainer._set_advantages(rollouts)
        results.append(rollouts.advantages.clone())
    assert torch.allclose(results[0].sort(-1).values, results[1].sort(-1).values)
    assert not torch.allclose(results[0], results[1])


def brevity(group: Group) -> list[float]:
    """A reward that tells completions of an untrained model apart: shorter is better, and so are smaller words."""
    return [
        1.0 / (1 + count) + 0.01 * (len(text) % 7) for count, text in zip(group.token_counts, group.texts, strict=True)
    ]


BREVITY = {"temporal": {}, "extra": {"test_trainer_rewards:brevity": 1.0}}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward above under a module name of its own, as a user's would be."""
    import sys
    import types

    module = types.ModuleType("test_trainer_rewards")
    module.brevity = brevity  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_trainer_rewards", module)


@dataclass
class Trace:
    """What a training run did, step by step."""

    ids: list[torch.Tensor]
    rewards: list[torch.Tensor]
    log_probs: list[torch.Tensor]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]


def trace(trainer: VideoGRPOTrainer) -> Trace:
    ids: list[torch.Tensor] = []
    rewards: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    generate, score = trainer._generate_and_score_completions, trainer._set_advantages
    forward = trainer._get_per_token_logps_and_entropies

    def generated(inputs: Any) -> Any:
        output = generate(inputs)
        ids.append(output["completion_ids"] * output["completion_mask"])
        return output

    def scored(rollouts: Any) -> None:
        score(rollouts)
        rewards.append(rollouts.rewards)

    def forwarded(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        values.append(result[0].detach())
        return result

    trainer._generate_and_score_completions = generated  # type: ignore[method-assign]
    trainer._set_advantages = scored  # type: ignore[method-assign]
    trainer._get_per_token_logps_and_entropies = forwarded  # type: ignore[method-assign]
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return Trace(ids, rewards, values, norms, {n: p.detach().clone() for n, p in trainer.model.named_parameters()})


def differences(found: Trace, expected: Trace) -> dict[str, float]:
    """Largest relative differences; ids and rewards count differing entries."""

    def worst(pairs: Any) -> float:
        return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)

    same_shapes = [a.shape for a in found.ids] == [b.shape for b in expected.ids]
    return {
        "ids": float(sum(int((a != b).sum()) for a, b in zip(found.ids, expected.ids, strict=True)))
        if same_shapes
        else float("inf"),
        "rewards": worst(zip(found.rewards, expected.rewards, strict=True)),
        "log_probs": worst(zip(found.log_probs, expected.log_probs, strict=True)) if same_shapes else float("inf"),
        "grad_norms": worst([(torch.tensor(found.grad_norms), torch.tensor(expected.grad_norms))]),
        "weights": worst([(found.weights[name], weight) for name, weight in expected.weights.items()]),
    }


TWENTY_STEPS: dict[str, Any] = {
    "max_steps": 20,
    "save_every_steps": 20,
    "validation": {"every_steps": 20, "num_items": 2, "max_new_tokens": 4},
    "kl_coefficient": 0.04,
    "num_iterations": 2,
    "temperature": 0.25,  # an untrained model's 900 tokens are nearly equally likely: the last bit would pick another
    "learning_rate": 0.05,
    "prompts_per_step": 2,
    "rewards": BREVITY,
    "optimizer": "sgd",
}


@pytest.fixture(scope="module")
def plain_trace_cache() -> dict[str, Trace]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shared_prefix": "mask"}, {"max_tokens_per_pass": 60}])
def test_the_fast_trainer_does_what_the_plain_one_does(
    build: Build, plain_trace_cache: dict[str, Trace], changes: dict[str, Any]
) -> None:
    if "plain" not in plain_trace_cache:
        plain_trace_cache["plain"] = trace(build("plain", **TWENTY_STEPS, shared_prefix="off"))
    plain = plain_trace_cache["plain"]
    start = {n: p.detach().clone() for n, p in build("start").model.named_parameters()}
    # On-policy equal losses would prove nothing: the weights have visibly moved.
    moved = sum(float((plain.weights[name] - weight).norm() ** 2) for name, weight in start.items())
    assert (moved / sum(float(weight.norm() ** 2) for weight in start.values())) ** 0.5 > 0.01
    found = trace(build("fast", **(TWENTY_STEPS | changes)))
    if "max_tokens_per_pass" in changes:  # more passes, of other shapes: the sum of their gradients is compared
        assert len(found.log_probs) > len(plain.log_probs)
        found.log_probs = plain.log_probs
    apart = differences(found, plain)
    assert apart["ids"] == 0
    assert max(apart.values()) < 1e-4, apart


@pytest.mark.slow
def test_a_blind_forward_fails_the_comparison_with_the_plain_trainer(
    build: Build, plain_trace_cache: dict[str, Trace]
) -> None:
    if "plain" not in plain_trace_cache:
        plain_trace_cache["plain"] = trace(build("plain", **TWENTY_STEPS, shared_prefix="off"))
    blind = build("blind", **TWENTY_STEPS)
    media = blind.encoder.media
    forward = blind._packed_forward

    def without_pixels(*args: Any) -> Any:
        blind.encoder.media = lambda prompts: {k: v * 0 if "pixel" in k else v for k, v in media(prompts).items()}  # type: ignore[method-assign]
        try:
            return forward(*args)
        finally:
            blind.encoder.media = media  # type: ignore[method-assign]

    blind._packed_forward = without_pixels  # type: ignore[method-assign]
    apart = differences(trace(blind), plain_trace_cache["plain"])
    assert apart["weights"] > 1e-3
    assert apart["log_probs"] > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "dr_grpo"},
        {"loss": "dapo", "epsilon_high": 0.28, "dynamic_sampling": 2},
        {"loss": "gspo", "num_iterations": 2},
        {"kl_coefficient": 0.0, "shared_prefix": "mask"},
    ],
    ids=lambda changes: changes.get("loss", "no KL"),
)
@pytest.mark.parametrize("budget", [None, 60])
def test_every_objective_trains_and_a_token_budget_changes_nothing(
    build: Build, changes: dict[str, Any], budget: int | None, request: pytest.FixtureRequest
) -> None:
    settings = {"max_steps": 2, "rewards": BREVITY, "optimizer": "sgd", "learning_rate": 0.05, "prompts_per_step": 2}
    found = trace(build("run", **settings, **changes, max_tokens_per_pass=budget))
    assert len(found.grad_norms) == 2
    assert all(norm > 0 for norm in found.grad_norms)
    cache = request.config.stash.setdefault(_NORMS, {})
    cache.setdefault(str(changes), []).append(found.grad_norms)
    if len(cache[str(changes)]) == 2:
        assert cache[str(changes)][0] == pytest.approx(cache[str(changes)][1], rel=1e-4)


_NORMS = pytest.StashKey[dict[str, list[list[float]]]]()


def test_groups_without_signal_are_tried_again_with_other_prompts_or_left_out(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vthink.components.grpo.trainer as module

    rows = rows_of_kind(prepared, "video", 3)
    hopeless = prepared.split("train").samples[rows[0]].id
    real = module.group_rewards

    def some_signal(group: Group, *args: Any) -> GroupRewards:
        earned = real(group, *args)
        values = torch.zeros_like(earned.components)
        if group.sample.id != hopeless:
            values[0, 0] = 1.0
        return GroupRewards(components=values, accuracy=values[:, 0], shuffled_accuracy=torch.tensor([]))

    monkeypatch.setattr(module, "group_rewards", some_signal)
    dropped = build(dynamic_sampling=1, rows=[rows[0]])  # the only other prompt is the same one
    generated = dropped._generate_and_score_completions(inputs_for(rows))
    counted = generated["tool_mask"].sum(1)
    assert counted[:G].tolist() == [0] * G
    assert bool((counted[G:] > 0).all())
    assert int(generated["num_items_in_batch"]) == int(counted.sum())
    replaced = build(dynamic_sampling=3, rows=rows[1:])._roll_out(rows)
    assert replaced.without_signal == []
    assert replaced.items[0].sample.id != hopeless
    kept = build(rows=rows)._roll_out(rows)
    assert kept.without_signal == [0]


def test_a_truncated_completion_is_left_out_of_the_loss_when_asked(build: Build, prepared: PreparedSet) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    plain, masked = build(max_new_tokens=3), build(max_new_tokens=3, mask_truncated=True)
    assert bool((plain._generate_and_score_completions(inputs_for(rows))["tool_mask"].sum(1) > 0).all())
    generated = masked._generate_and_score_completions(inputs_for(rows))
    ended = (generated["completion_ids"] == masked.encoder.eos_token_id).any(1)
    assert (generated["tool_mask"].sum(1) > 0).tolist() == ended.tolist()


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
    with pytest.raises(RewardError, match=message):
        trainer._roll_out(rows_of_kind(prepared, "video", 1))


def test_a_reward_that_does_not_exist_is_refused_before_training(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"grpo\.rewards\.extra: 'no_such_module:reward' cannot be loaded"):
        build(rewards={"extra": {"no_such_module:reward": 1.0}})
    with pytest.raises(ValueError, match="not of the form"):
        GRPOConfig(**(SETTINGS | {"rewards": {"extra": {"brevity": 1.0}}}))
    with pytest.raises(ValueError, match="same name"):
        GRPOConfig(**(SETTINGS | {"rewards": {"extra": {"my_module:format": 1.0}}}))


def test_broken_numbers_stop_the_training_before_the_weights(build: Build, prepared: PreparedSet) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    trainer = build()
    generated = trainer._generate_and_score_completions(inputs_for(rows))
    # Frames that are not finite: a hostile normalisation in a model folder would make them so.
    broken = replace(generated["prompts"][0], pixel_values=generated["prompts"][0].pixel_values * float("nan"))
    with pytest.raises(UserError, match="log-probabilities of rows"):
        trainer._compute_loss(trainer.model, generated | {"prompts": [broken] * G + generated["prompts"][G:]})
    with pytest.raises(UserError, match="logits are not finite"):
        sample(trainer.model, trainer.encoder, [broken], Sampling(max_new_tokens=2))
    # A completion made of vision tokens.
    hostile = generated["completion_ids"].clone()
    hostile[1, 0] = trainer.encoder.video_token_id
    with pytest.raises(BlindInputError, match="holds vision tokens"):
        trainer._compute_loss(trainer.model, generated | {"completion_ids": hostile})
    # A policy that has left the reference far behind.
    far = generated["ref_per_token_logps"] + 5.0
    with pytest.raises(DivergedError, match=r"KL .* above grpo.max_kl"):
        trainer._compute_loss(trainer.model, generated | {"ref_per_token_logps": far})
    with pytest.raises(UserError, match="the loss is"):
        trainer._compute_loss(trainer.model, generated | {"advantages": generated["advantages"] * float("inf")})
    with pytest.raises(UserError, match="norm of the gradients"):
        trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(float("nan")))
    # The control: the batch as it was.
    assert torch.isfinite(trainer._compute_loss(trainer.model, generated))


def test_empty_completions_and_a_video_of_one_frame_are_trained_on_without_harm(
    build: Build, prepared: PreparedSet
) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    trainer = build()
    generated = trainer._generate_and_score_completions(inputs_for(rows))
    mask, counted = generated["completion_mask"].clone(), generated["tool_mask"].clone()
    mask[0], counted[0] = 0, 0  # one is empty, and so is a whole group
    mask[G : 2 * G], counted[G : 2 * G] = 0, 0
    loss = trainer._compute_loss(trainer.model, generated | {"completion_mask": mask, "tool_mask": counted})
    assert torch.isfinite(loss)
    loss.backward()
    item = prepared.split("train")[rows[0]]
    single = Clip(item.clip.frames[:1], item.clip.times_s[:1], item.clip.duration_s, "video")
    trainer.prefetcher.take = lambda rows: [PreparedSample(item.sample, single) for _ in rows]  # type: ignore[method-assign]
    rollouts = trainer._roll_out(rows[:1])
    assert rollouts.shuffled == [[]]  # one frame has no order: no shuffled rollouts, no bonus


class PlaysVLLM:
    """Stands in for `VLLMRollouts`, which needs vLLM: our engine's completions, each log-probability ``gap`` lower."""

    def __init__(self, trainer: VideoGRPOTrainer, gap: float) -> None:
        self.trainer, self.gap, self.asked = trainer, gap, []  # type: ignore[var-annotated]

    def policy(self, step: int) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def generate(self, prompts: Any, sampling: Sampling, n: int, keys: Any) -> list[list[SampledCompletion]]:
        trainer, groups = self.trainer, []
        self.asked.append((list(prompts), n))
        for prompt, group in zip(
            prompts, sample(trainer.model, trainer.encoder, prompts, sampling, n, keys=keys), strict=True
        ):
            with torch.no_grad():
                values, _ = trainer._plain_forward(trainer.model, [prompt] * n, [c.token_ids for c in group])
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
        trainer.vllm = PlaysVLLM(trainer, gap)  # type: ignore[assignment]
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        generated = trainer._generate_and_score_completions(inputs_for(rows))
        ordered, shuffled = trainer.vllm.asked  # type: ignore[union-attr]
        assert (ordered[1], shuffled[1]) == (G, G // 2)
        assert not torch.equal(ordered[0][0].pixel_values, shuffled[0][0].pixel_values)
        # Positive advantages only, so that the weighted loss is not zero.
        losses[gap] = trainer._compute_loss(trainer.model, generated | {"advantages": torch.ones(3 * G)}).item()
        assert trainer._metrics["train"]["grpo/sampler_gap"][-1] == pytest.approx(gap, abs=1e-4)
    assert losses[0.0] == pytest.approx(-1.0, rel=1e-4)
    assert losses[0.1] == pytest.approx(-np.exp(0.1), rel=1e-4)
    assert losses[5.0] == pytest.approx(-2.0, rel=1e-4)  # the cap


def test_a_run_without_any_signal_stops_and_says_why(build: Build, prepared: PreparedSet) -> None:
    trainer = build(max_steps_without_signal=2, rewards="video_thinker")  # an untrained model earns nothing at all
    rows = rows_of_kind(prepared, "video", 3)
    trainer._generate_and_score_completions(inputs_for(rows))
    with pytest.raises(DivergedError, match="every completion of every prompt earned the same"):
        trainer._generate_and_score_completions(inputs_for(rows))


def test_clips_are_decoded_ahead_and_a_stall_is_named(prepared: PreparedSet) -> None:
    import threading

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
    with pytest.raises(DataStallError, match=r"row 0 .* was not decoded within 0.05 s"):
        prefetcher.take([0])
    gate.set()
    prefetcher.timeout_s = 5
    assert [item.sample.id for item in prefetcher.take([1, 2])] == [split.samples[1].id, split.samples[2].id]
    assert asked.count(1) == 1  # it was taken from what had been announced


def test_a_steps_time_is_accounted_for(build: Build) -> None:
    trainer = build(max_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "time/step_s" in entry]
    assert len(logged) == 2
    parts = ("wait", "rollout", "reward", "log_probs", "forward", "backward", "update", "other")
    for entry in logged:
        assert sum(entry[f"time/{part}_s"] for part in parts) == pytest.approx(entry["time/step_s"], rel=1e-3)
        assert all(entry[f"time/{part}_s"] > 0 for part in parts)
        assert entry["time/tokens_per_s"] > 0
        for group in ("grpo/accuracy/type/", "grpo/accuracy/source/", "grpo/reward/"):
            assert any(name.startswith(group) for name in entry), group


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"lora": {"rank": 4}}, {"gradient_accumulation": 2}], ids=["full", "lora", "accumulate"]
)
def test_a_resumed_training_equals_an_undisturbed_one(build: Build, changes: dict[str, Any]) -> None:
    # Rewards of an untrained model are zero: the KL term to the start, at a rate this high, moves the weights.
    whole = build("whole", **changes)
    whole.train()
    half = build("parts", **(changes | {"max_steps": 2}))
    half.train()
    rest = build("parts", **changes)
    rest.train(resume_from_checkpoint=str(Path(rest.args.output_dir) / "checkpoint-2"))
    assert rest.state.global_step == whole.state.global_step == 4
    for (name, expected), (_, found) in zip(whole.model.named_parameters(), rest.model.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
