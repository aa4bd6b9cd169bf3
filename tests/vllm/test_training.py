"""GRPO trains with rollouts in vLLM, inside the process and on a server. Played and real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig as TRLConfig
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.training.trainer import Validation, trainer_arguments
from vthink.components.grpo.config import GRPOConfig
from vthink.components.grpo.rollouts import prompt_rows
from vthink.components.grpo.train import trl_arguments
from vthink.components.grpo.trainer import VideoGRPOTrainer
from vthink.tests.unit.components.grpo.tiny_training import SETTINGS, G, inputs_for, rows_of_kind
from vthink.tests.vllm.conftest import forget_ranks
from vthink.tests.vllm.subject import Subject

REWARDS = {"temporal": {}, "extra": {"vthink.tests.unit.components.grpo.tiny_training:brevity": 1.0}}


def build(subject: Subject, prepared: PreparedSet, folder: Path, **changes: Any) -> VideoGRPOTrainer:
    """A trainer that starts from the subject's model."""
    vllm = {"mode": subject.mode, "server_urls": subject.urls}
    settings = GRPOConfig(**(SETTINGS | {"vllm": vllm, "rewards": REWARDS, "top_p": 0.9} | changes))
    model = AutoModelForImageTextToText.from_pretrained(subject.model.name_or_path, dtype=torch.float32)
    encoder, split = subject.encoder, prepared.split("train")
    trainer = VideoGRPOTrainer(
        model=model,
        args=TRLConfig(**trainer_arguments(settings, folder, True), **trl_arguments(settings)),
        train_dataset=prompt_rows(range(len(split))),
        eval_dataset=prompt_rows([0]),
        processing_class=encoder.processor,
        settings=settings,
        encoder=encoder,
        split=split,
        validation=Validation(encoder, prepared.split("validation"), settings.validation),
    )
    trainer.current_gradient_accumulation_steps = 1  # as within `train`
    return trainer


def test_four_steps_train_on_what_was_sampled_with_the_policys_own_weights(
    subject: Subject, prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subject.encoder.video != prepared.video:  # frames are prepared for one family
        assert subject.encoder.family.time_in_text
        return
    started: dict[str, Any] = {}
    if subject.mode == "colocate":  # a process can hold one engine: the subject's, with the trainer's weights
        engine = subject.engine.vllm._engine  # type: ignore[attr-defined]
        monkeypatch.setattr("vllm.LLM", lambda **arguments: started.update(arguments) or engine)
    trainer = build(subject, prepared, tmp_path)
    vllm: Any = trainer.generator.engine.vllm  # type: ignore[attr-defined]
    counts: list[list[int]] = []
    complete = vllm.complete
    monkeypatch.setattr(vllm, "complete", lambda rs: counts.append([r.sampling["n"] for r in rs]) or complete(rs))
    try:
        batch = trainer.generate_batch(inputs_for(rows_of_kind(prepared, "video", 3)))
        assert counts == [[G] * 3 + [G // 2] * 3]  # the shuffled rollouts come in the same call
        assert batch.importance_weights is not None
        weights = batch.importance_weights[batch.completion_mask.bool()]
        assert torch.allclose(weights, torch.ones_like(weights), atol=1e-3)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train()
    finally:
        subject.engine._weights_of_step = None
        forget_ranks()
    gaps = [entry["grpo/sampler_gap"] for entry in trainer.state.log_history if "grpo/sampler_gap" in entry]
    assert len(gaps) == trainer.state.global_step == 4
    assert max(gaps) < 1e-3
    if started:
        assert (started["dtype"], started["enable_sleep_mode"]) == ("float32", False)
        assert started["max_num_seqs"] == sum(counts[0])
        assert max(map(len, batch.prompts)) + 12 <= started["max_model_len"] < 300
    assert not all(map(torch.equal, before, trainer.model.parameters()))
