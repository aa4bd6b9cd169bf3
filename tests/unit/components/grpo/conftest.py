"""A GRPO trainer on a real tiny model and real prepared videos."""

from __future__ import annotations

import gc
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig as TRLConfig
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.checkpoints import CheckpointCallback, CheckpointStore
from vthink.components.common.training.trainer import Validation, adapter_config, trainer_arguments
from vthink.components.grpo.config import GRPOConfig
from vthink.components.grpo.rollouts import prompt_rows
from vthink.components.grpo.train import trl_arguments
from vthink.components.grpo.trainer import VideoGRPOTrainer
from vthink.tests.unit.components.grpo.tiny_training import SETTINGS, Build, brevity


@pytest.fixture(scope="session")
def start(small_world: str, s3: StorageConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, saved: training starts from it, and the reference model is loaded from it."""
    folder = tmp_path_factory.mktemp("start")
    video = PreparedSet.open(Storage(s3), small_world, folder / "cache").video
    model, processor = build_tiny(TinyModelConfig(), video, 0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # accelerate collects garbage at the start of each training: a second, unless what was imported is left out.
    gc.freeze()
    return folder


@pytest.fixture
def build(prepared: PreparedSet, storage: Storage, start: Path, tmp_path: Path) -> Build:
    def make(
        folder: str = "run", rows: list[int] | None = None, optimizer: str = "adamw_torch_fused", **changes: Any
    ) -> VideoGRPOTrainer:
        settings = GRPOConfig(**(SETTINGS | changes))
        model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(start)
        encoder = ChatEncoder(processor, "compact/1", prepared.video, tokens_per_second(model))
        split, held_out = prepared.split("train"), prepared.split("validation")
        store = CheckpointStore(storage, f"{storage.config.root_uri}{folder}/", tmp_path / folder)
        trainer = VideoGRPOTrainer(
            model=model,
            # Log-probabilities at temperature 1: at that of the rollouts, where it is low, steps would be far too long.
            args=TRLConfig(
                **trainer_arguments(settings, store.folder, True),
                **(trl_arguments(settings) | {"temperature": 1.0}),
                optim=optimizer,
            ),
            train_dataset=prompt_rows(rows if rows is not None else list(range(len(split)))),
            eval_dataset=prompt_rows([0]),
            processing_class=processor,
            peft_config=adapter_config(model, settings),
            callbacks=[CheckpointCallback(store)],
            settings=settings,
            encoder=encoder,
            split=split,
            validation=Validation(encoder, held_out, settings.validation),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # as within `train`
        return trainer

    return make


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward above under a module name of its own, as a user's would be."""
    module = types.ModuleType("test_trainer_rewards")
    module.brevity = brevity  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_trainer_rewards", module)
