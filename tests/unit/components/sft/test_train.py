"""SFT's collator and trainer on real prepared videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig as TRLConfig
from vthink.components.common.answers.formats import write_response
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.checkpoints import CheckpointCallback, CheckpointStore
from vthink.components.common.training.trainer import Validation, adapter_config, trainer_arguments
from vthink.components.sft.config import SFTConfig
from vthink.components.sft.train import ResponseCollator, VideoSFTTrainer

SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "gradient_checkpointing": False,
    "save_every_steps": 2,
    "log_every_steps": 1,
    "validation": {"every_steps": 2, "num_items": 4, "max_new_tokens": 8},
}


def build(prepared: PreparedSet, storage: Storage, folder: Path, **changes: Any) -> VideoSFTTrainer:
    settings = SFTConfig(**(SETTINGS | changes))
    model, processor = build_tiny(TinyModelConfig(), prepared.video, 0)
    encoder = ChatEncoder(processor, "compact/1", prepared.video, tokens_per_second(model))
    split, held_out = prepared.split("train"), prepared.split("validation")
    store = CheckpointStore(storage, f"{storage.config.root_uri}{folder.name}/", folder)
    arguments = TRLConfig(
        **trainer_arguments(settings, store.folder, True),
        per_device_train_batch_size=settings.batch_size,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return VideoSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": list(range(len(split)))}),
        eval_dataset=Dataset.from_dict({"row": [0]}),
        data_collator=ResponseCollator(split, encoder, "auto"),
        processing_class=processor,
        peft_config=adapter_config(model, settings),
        callbacks=[CheckpointCallback(store)],
        validation=Validation(encoder, held_out, settings.validation),
        stop_at_accuracy=settings.stop_at_accuracy,
    )


def test_the_loss_is_on_the_response_and_its_end_alone(prepared: PreparedSet) -> None:
    model, processor = build_tiny(TinyModelConfig(), prepared.video, 0)
    encoder = ChatEncoder(processor, "compact/1", prepared.video, tokens_per_second(model))
    split = prepared.split("train")
    rows = [{"row": row} for row in range(6)]
    batch = ResponseCollator(split, encoder, "auto")(rows)
    for row in range(6):
        scored = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert scored[-1] == encoder.eos_token_id
        assert encoder.decode(scored) == write_response(split.samples[row], "video_thinker")
        assert not set(scored) & set(encoder.vision_token_ids)
    other = ResponseCollator(split, encoder, "video_r1")(rows[:1])
    text = encoder.decode(other["labels"][0][other["labels"][0] != -100].tolist())
    assert text.startswith("<think>")
    assert "<time>" not in text


def test_training_stops_once_validation_is_as_good_as_a_cold_start_should_be(
    prepared: PreparedSet, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.9])
    monkeypatch.setattr(Validation, "score", lambda *_: {"eval_accuracy": next(scores), "eval_format_rate": 1.0})
    trainer = build(prepared, storage, tmp_path / "run", max_steps=6, stop_at_accuracy=0.4)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}}], ids=["full", "lora"])
def test_a_resumed_training_equals_an_undisturbed_one(
    prepared: PreparedSet, storage: Storage, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = build(prepared, storage, tmp_path / "whole", **changes)
    whole.train()
    build(prepared, storage, tmp_path / "parts", **(changes | {"max_steps": 2})).train()
    rest = build(prepared, storage, tmp_path / "parts", **changes)
    rest.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    fresh = build(prepared, storage, tmp_path / "fresh", **changes)
    moved = False
    for (name, expected), found, before in zip(
        whole.model.named_parameters(), rest.model.parameters(), fresh.model.parameters(), strict=True
    ):
        assert torch.equal(expected, found), name
        moved = moved or not torch.equal(before, expected)
    assert moved  # the control: there was something to lose


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_come_in_the_order_of_the_set_where_they_are_not_shuffled(
    shuffle: bool, prepared: PreparedSet, storage: Storage, tmp_path: Path
) -> None:
    trainer = build(prepared, storage, tmp_path, shuffle=shuffle)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(order)))
    assert (order == list(range(len(order)))) != shuffle
