"""A GRPO trainer on a tiny model and prepared videos, and what its tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vthink.components.common.model.generation import Completion
from vthink.components.common.rows.prepared import PreparedSample, PreparedSet
from vthink.components.common.rows.sample import Media, Sample
from vthink.components.common.video.clip import Clip
from vthink.components.grpo.losses import TrainingBatch
from vthink.components.grpo.rewards import Group
from vthink.components.grpo.rollouts import Rollouts
from vthink.components.grpo.trainer import VideoGRPOTrainer

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
BREVITY = {"temporal": {}, "extra": {"test_trainer_rewards:brevity": 1.0}}


def inputs_for(rows: list[int]) -> list[dict[str, Any]]:
    return [{"prompt": "", "row": row} for row in rows for _ in range(G)]


def rows_of_kind(prepared: PreparedSet, kind: str, count: int) -> list[int]:
    return [i for i, s in enumerate(prepared.split("train").samples) if s.media.kind == kind][:count]


def roll_out(trainer: VideoGRPOTrainer, rows: list[int]) -> Rollouts:
    return trainer.generator.roll_out(rows, trainer.state.global_step)


def log_probs(trainer: VideoGRPOTrainer, batch: TrainingBatch) -> torch.Tensor:
    return trainer.log_probs(trainer.model, batch)[0]


def brevity(group: Group) -> list[float]:
    """A reward that tells completions of an untrained model apart: shorter is better, and so are smaller words."""
    return [
        1.0 / (1 + count) + 0.01 * (len(text) % 7) for count, text in zip(group.token_counts, group.texts, strict=True)
    ]


def rollouts_of(question: str, shuffled: bool = True) -> Rollouts:
    """Two completions of a question, the first of which is right, and perhaps another one on shuffled frames."""
    frames = np.stack([np.full((56, 56, 3), value, np.uint8) for value in (0, 255)])
    clip = Clip(frames, np.array([0.0, 1.0]), 2.0)
    row = Sample(
        id="q", media=Media(kind="video", uri="q.mp4"), question=question, problem_type="free_form", answer="A"
    )
    texts = (f"{question} <answer>A</answer>", "no")
    return Rollouts(
        items=[PreparedSample(row, clip)],
        prompts=[],
        completions=[[Completion(token_ids=[1], text=text, finish_reason="stop") for text in texts]],
        shuffled_clips=[clip.permuted([1, 0]) if shuffled else None],
        groups=[Group(sample=row, texts=texts, token_counts=[1, 1], shuffled_texts=["maybe"] if shuffled else [])],
        rewards=[torch.tensor([[1.0, 1.0], [0.0, 0.0]])],
        advantages=torch.tensor([[0.87, -0.87]]),
    )
