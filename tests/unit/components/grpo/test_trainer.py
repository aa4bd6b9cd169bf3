"""The GRPO trainer as a whole: what it does step by step, in whatever way it is computed, and what stops it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.prompt import BlindInputError
from vthink.components.common.rows.prepared import PreparedSample, PreparedSet
from vthink.components.common.video.clip import Clip
from vthink.components.grpo import rollouts as rollouts_module
from vthink.components.grpo.log_probs import SightedLogProbs
from vthink.components.grpo.losses import group_advantages
from vthink.components.grpo.rewards import REWARDS
from vthink.components.grpo.trainer import VideoGRPOTrainer
from vthink.tests.unit.components.grpo.tiny_training import (
    BREVITY,
    Build,
    G,
    inputs_for,
    roll_out,
    rows_of_kind,
)


def test_advantages_are_taken_within_each_prompts_group(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Groups of different level and spread: statistics over all of them would give other advantages.
    drawn = [10.0**i * torch.rand(G, len(REWARDS), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    earned = iter(drawn)
    monkeypatch.setattr(rollouts_module, "score_group", lambda *_: next(earned))
    generated = build().generate_batch(inputs_for(rows_of_kind(prepared, "video", 3)))
    expected = torch.cat([group_advantages(rewards.sum(-1)) for rewards in drawn])
    assert torch.allclose(generated.advantages, expected)
    assert not torch.allclose(group_advantages(torch.cat(drawn).sum(-1)), expected)  # the control


def test_a_group_spread_over_processes_is_refused(build: Build) -> None:
    with pytest.raises(RuntimeError, match="multiple of G"):
        build().generate_batch([{"prompt": "", "row": row} for row in (0, 1, 0, 1)])


def test_permuted_rewards_keep_a_groups_rewards_but_not_their_owners(
    build: Build, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = torch.arange(G * len(REWARDS), dtype=torch.float32).view(G, -1)
    monkeypatch.setattr(rollouts_module, "score_group", lambda *_: rewards)
    rows = rows_of_kind(prepared, "video", 3)
    results = [build(**changes).generate_batch(inputs_for(rows)) for changes in ({}, {"permute_rewards": True})]
    plain, control = (batch.advantages.view(3, G) for batch in results)
    assert torch.allclose(plain.sort(-1).values, control.sort(-1).values)
    assert not torch.allclose(plain, control)


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
    generate, make = trainer.generate_batch, trainer.generator.roll_out

    def generated(examples: Any) -> Any:
        batch = generate(examples)
        ids.append(batch.completion_ids * batch.completion_mask)
        return batch

    def rolled_out(*args: Any) -> Any:
        rollouts = make(*args)
        rewards.append(rollouts.components)
        return rollouts

    class Recording(SightedLogProbs):
        def __call__(self, *args: Any) -> Any:
            result = super().__call__(*args)
            values.append(result[0].detach())
            return result

    trainer.generate_batch = generated  # type: ignore[method-assign]
    trainer.generator.roll_out = rolled_out  # type: ignore[method-assign]
    trainer.log_probs.__class__ = Recording
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


MANY_STEPS: dict[str, Any] = {
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
        plain_trace_cache["plain"] = trace(build("plain", **MANY_STEPS, shared_prefix="off"))
    plain = plain_trace_cache["plain"]
    start = {n: p.detach().clone() for n, p in build("start").model.named_parameters()}
    # On-policy equal losses would prove nothing: the weights have visibly moved.
    moved = sum(float((plain.weights[name] - weight).norm() ** 2) for name, weight in start.items())
    assert (moved / sum(float(weight.norm() ** 2) for weight in start.values())) ** 0.5 > 0.01
    found = trace(build("fast", **(MANY_STEPS | changes)))
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
        plain_trace_cache["plain"] = trace(build("plain", **MANY_STEPS, shared_prefix="off"))
    blind = build("blind", **MANY_STEPS)
    media = blind.encoder.media
    forward = blind.log_probs.packed_forward

    def without_pixels(*args: Any) -> Any:
        blind.encoder.media = lambda prompts: {k: v * 0 if "pixel" in k else v for k, v in media(prompts).items()}  # type: ignore[method-assign]
        try:
            return forward(*args)
        finally:
            blind.encoder.media = media  # type: ignore[method-assign]

    blind.log_probs.packed_forward = without_pixels  # type: ignore[method-assign]
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


def test_broken_numbers_stop_the_training_before_the_weights(build: Build, prepared: PreparedSet) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    trainer = build()
    batch = trainer.generate_batch(inputs_for(rows))
    # Frames that are not finite: a hostile normalisation in a model folder would make them so.
    first = batch.prompts[0]
    broken = replace(first, pixel_values=first.pixel_values * float("nan"))

    def loss(**changes: Any) -> torch.Tensor:
        return trainer.compute_loss(trainer.model, replace(batch, **changes))

    with pytest.raises(UserError, match="log-probabilities of rows"):
        loss(prompts=[broken] * G + batch.prompts[G:])
    with pytest.raises(UserError, match="logits are not finite"):
        sample(trainer.model, trainer.encoder, [broken], Sampling(max_new_tokens=2))
    # A completion made of vision tokens.
    hostile = batch.completion_ids.clone()
    hostile[1, 0] = trainer.encoder.video_token_id
    with pytest.raises(BlindInputError, match="holds vision tokens"):
        loss(completion_ids=hostile)
    # A policy that has left the reference far behind.
    assert batch.ref_log_probs is not None
    with pytest.raises(UserError, match=r"KL .* above grpo.max_kl"):
        loss(ref_log_probs=batch.ref_log_probs + 5.0)
    with pytest.raises(UserError, match="the loss is"):
        loss(advantages=batch.advantages * float("inf"))
    with pytest.raises(UserError, match="norm of the gradients"):
        trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(float("nan")))
    # The control: the batch as it was.
    assert torch.isfinite(loss())


def test_empty_completions_and_a_video_of_one_frame_are_trained_on_without_harm(
    build: Build, prepared: PreparedSet
) -> None:
    rows = rows_of_kind(prepared, "video", 3)
    trainer = build()
    batch = trainer.generate_batch(inputs_for(rows))
    mask, loss_mask = batch.completion_mask.clone(), batch.loss_mask.clone()
    mask[0], loss_mask[0] = 0, 0  # one is empty, and so is a whole group
    mask[G : 2 * G], loss_mask[G : 2 * G] = 0, 0
    loss = trainer.compute_loss(trainer.model, replace(batch, completion_mask=mask, loss_mask=loss_mask))
    assert torch.isfinite(loss)
    loss.backward()
    item = prepared.split("train")[rows[0]]
    single = Clip(item.clip.frames[:1], item.clip.times_s[:1], item.clip.duration_s, "video")
    trainer.prefetcher.take = lambda rows: [PreparedSample(item.sample, single) for _ in rows]  # type: ignore[method-assign]
    rollouts = roll_out(trainer, rows[:1])
    assert rollouts.groups[0].shuffled_texts == []  # one frame has no order: no shuffled rollouts, no bonus


def test_a_run_without_any_signal_stops_and_says_why(build: Build, prepared: PreparedSet) -> None:
    trainer = build(max_steps_without_signal=2, rewards="video_thinker")  # an untrained model earns nothing at all
    rows = rows_of_kind(prepared, "video", 3)
    trainer.generate_batch(inputs_for(rows))
    with pytest.raises(UserError, match="every completion of every prompt earned the same"):
        trainer.generate_batch(inputs_for(rows))


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
        assert {"kl", "entropy", "clip_ratio/high_mean"} <= entry.keys()
        for group in ("grpo/accuracy/type/", "grpo/accuracy/source/", "grpo/reward/"):
            assert any(name.startswith(group) for name in entry), group


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"lora": {"rank": 4}}, {"gradient_accumulation": 2}], ids=["full", "lora", "accumulate"]
)
def test_a_resumed_training_equals_an_undisturbed_one(build: Build, changes: dict[str, Any]) -> None:
    # Rewards of an untrained model are zero: the KL term to the start, at a rate this high, moves the weights.
    changes |= {"save_every_steps": 1, "validation": {"every_steps": 1, "num_items": 2, "max_new_tokens": 4}}
    whole = build("whole", **changes, max_steps=3)
    start = {name: weight.detach().clone() for name, weight in whole.model.named_parameters() if weight.requires_grad}
    whole.train()
    build("parts", **changes, max_steps=2).train()
    rest = build("parts", **changes, max_steps=3)
    rest.train(resume_from_checkpoint=str(Path(rest.args.output_dir) / "checkpoint-2"))
    assert rest.state.global_step == whole.state.global_step == 3
    weights = dict(whole.model.named_parameters())
    assert any(not torch.equal(weights[name], weight) for name, weight in start.items())  # the control
    for (name, expected), (_, found) in zip(whole.model.named_parameters(), rest.model.named_parameters(), strict=True):
        assert torch.equal(expected, found), name
