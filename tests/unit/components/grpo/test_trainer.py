"""The GRPO trainer on a real tiny model and real prepared videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer
from vthink.components.common.chat import BlindInputError, ChatEncoder
from vthink.components.common.checkpoints import CheckpointCallback, CheckpointStore, trainer_arguments
from vthink.components.common.config import TinyModelConfig
from vthink.components.common.models import build_tiny, tokens_per_second
from vthink.components.common.samples import PreparedSet
from vthink.components.common.storage import Storage
from vthink.components.grpo.config import BUILT_IN_REWARDS, GRPOConfig
from vthink.components.grpo.rewards import GroupRewards, group_advantages
from vthink.components.grpo.trainer import VideoGRPOTrainer, frame_order, prompt_rows

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
    def make(folder: str = "run", rows: list[int] | None = None, **changes: Any) -> VideoGRPOTrainer:
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
