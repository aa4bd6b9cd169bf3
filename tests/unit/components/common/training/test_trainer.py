"""What trainers are told: batches on the processes there are, which weights stay as they are, which rows count."""

from typing import Any

import pytest
from vthink.components.common.config import ConfigError
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Completion
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.shapes import read_shape
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.training import trainer
from vthink.components.common.training.config import LoraConfig, TrainingConfig, ValidationConfig
from vthink.components.common.training.resources import trained_parameters
from vthink.components.common.training.trainer import Validation, accumulation, adapter_config, freeze, pick_rows
from vthink.components.common.video.config import VideoConfig


@pytest.mark.parametrize(("processes", "planned", "expected"), [("1", None, 2), ("1", 4, 8), ("4", 4, 2), ("2", 4, 4)])
def test_fewer_processes_take_more_micro_batches_for_the_planned_batch(
    processes: str, planned: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert accumulation(TrainingConfig(gradient_accumulation=2), planned) == expected


def test_a_number_of_processes_that_cannot_share_the_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 processes cannot share; start a number of them that divides 4"):
        accumulation(TrainingConfig(), 4)


@pytest.mark.parametrize(
    ("setting", "frozen"),
    [("freeze_vision", "model.visual.blocks."), ("freeze_projector", "model.visual.merger.")],
)
def test_freezing_stops_exactly_the_named_part(prepared: PreparedSet, setting: str, frozen: str) -> None:
    model, _ = build_tiny(TinyModelConfig(), prepared.video, 0)
    freeze(model, TrainingConfig(**{setting: True}))
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any(name.startswith(frozen) for name in still)
    assert all(name.startswith("model.visual.") for name in still)
    assert ("model.visual.merger.mlp.0.weight" in still) == (setting == "freeze_projector")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_plan_counts_as_many_parameters_of_adapters_as_are_trained(family: Any) -> None:
    from peft import get_peft_model

    video = VideoConfig(size_multiple=28 if family == "qwen2_5_vl" else 32)
    config = TrainingConfig(lora=LoraConfig(rank=4))
    model, _ = build_tiny(TinyModelConfig(family=family), video, 0)
    shape = read_shape(model.config.to_dict(), "the tiny model")
    adapted = get_peft_model(model, adapter_config(model, config))
    assert trained_parameters(config, shape) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_only_the_wanted_kinds_and_media_are_trained_on(prepared: PreparedSet) -> None:
    split = prepared.split("train")
    kinds = {split.samples[i].metadata["kind"] for i in pick_rows(split, ["direction", "count"])}
    assert kinds <= {"direction", "count"}
    assert all(split.samples[i].media.kind == "video" for i in pick_rows(split, [], images=False))
    assert len(pick_rows(split, [])) == len(split)


@pytest.mark.parametrize(("ending", "accuracy"), [("stop", 1.0), ("length", 0.0)])
def test_validation_reads_answers_as_evaluation_does(
    prepared: PreparedSet, ending: str, accuracy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of tags too; and what was cut off is no answer."""
    model, processor = build_tiny(TinyModelConfig(), prepared.video, 0)
    encoder = ChatEncoder(processor, "compact/1", prepared.video, tokens_per_second(model))
    split = prepared.split("validation")
    asked = Validation(encoder, split, ValidationConfig(num_items=2))
    rows = iter(asked.rows)

    def answer(model: object, encoder: object, prompts: list[object], sampling: object) -> list[list[Completion]]:
        texts = [f"<think>It is seen.</think> <answer>{split.samples[next(rows)].answer}" for _ in prompts]
        return [[Completion(token_ids=[1], text=text, finish_reason=ending)] for text in texts]

    monkeypatch.setattr(trainer, "sample", answer)
    assert asked.score(model) == {"eval_accuracy": accuracy, "eval_format_rate": 0.0}
