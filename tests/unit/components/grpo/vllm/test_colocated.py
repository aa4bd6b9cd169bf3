"""vLLM in the training process: what stops it from starting is told in one line, and nothing is left behind."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from vthink.components.common.errors import UserError
from vthink.components.grpo.vllm import colocated as colocated_module
from vthink.components.grpo.vllm.colocated import ColocatedVLLM
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.weights import PolicyWeights
from vthink.tests.fakes import played_vllm
from vthink.tests.unit.components.grpo.vllm.prompts import SAMPLING, build, clip_of

ARGUMENTS = {"dtype": "float32", "max_model_len": 512, "logprobs_mode": "raw_logprobs"}


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    played_vllm.play(monkeypatch)
    yield
    os.environ.clear()
    os.environ.update(before)


def weights(folder: str, device: str = "cpu") -> PolicyWeights:
    model: Any = torch.nn.Linear(1, 1)
    model.name_or_path = folder
    walk = PolicyWeights(model, Accelerator(cpu=True))
    if device != "cpu":
        walk.accelerator = type("GPU", (), {"device": torch.device(device), "process_index": 0})()
    return walk


def test_the_reason_why_vllm_does_not_start_is_in_the_one_line_that_the_user_sees() -> None:
    with pytest.raises(UserError) as error:
        ColocatedVLLM(weights("Qwen/none"), sleep=True, **ARGUMENTS)
    assert str(error.value) == (
        "vLLM does not start: ValueError: 1 validation error for ModelConfig "
        "Value error, Invalid repository ID: 'Qwen/none'"
    )


def test_a_missing_vllm_and_one_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(played_vllm, "VERSION", "0.30.0")
    played_vllm.play(monkeypatch)
    with pytest.raises(UserError, match=r"the training process is vLLM 0.30.0; .* 0.31 to 0.33"):
        ColocatedVLLM(weights("none"), sleep=True, **ARGUMENTS)
    monkeypatch.setattr(colocated_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs vLLM where GRPO trains"):
        ColocatedVLLM(weights("none"), sleep=True, **ARGUMENTS)


@pytest.mark.parametrize(("sleep", "cpu", "sleeps"), [(True, True, False), (False, True, False)])
def test_a_cpu_keeps_its_vllm_awake(
    sleep: bool, cpu: bool, sleeps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("vllm.LLM", lambda **arguments: seen.update(arguments))
    vllm = ColocatedVLLM(weights(str(tmp_path)), sleep, **ARGUMENTS)
    assert seen["enable_sleep_mode"] is sleeps
    assert vllm.sleep() is sleeps
    assert seen["dtype"] == "float32"


def test_a_prompt_that_vllm_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    model, processor, encoder = build("qwen2_5_vl")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model.name_or_path = str(tmp_path)
    clip = clip_of(encoder)
    short, long = (encoder.encode("Left? " * n, ["a", "b"], "multiple_choice", clip) for n in (1, 600))
    vllm = ColocatedVLLM(PolicyWeights(model, Accelerator(cpu=True)), True, **ARGUMENTS)
    rollouts = VLLMEngine(vllm, encoder, torch.float32)
    with rollouts.policy(0):
        with pytest.raises(UserError, match=f"refused a prompt of {len(long)} tokens: ValueError: The prompt"):
            rollouts.generate([short, long], SAMPLING, [1, 1], [0, 1])
        assert not vllm._engine.has_unfinished_requests()
        assert len(rollouts.generate([short], SAMPLING, [2], [0])[0]) == 2
