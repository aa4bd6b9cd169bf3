"""Several processes on this machine, as ``--set launch.processes=N`` starts them: real torchrun, gloo, DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vthink.components.common.context import RunContext
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.model.load import load_model
from vthink.components.common.model.store import fetch_model
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.grpo.component import grpo
from vthink.components.grpo.config import GRPOConfig
from vthink.components.sft.component import sft
from vthink.components.sft.config import SFTConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MODEL = ModelConfig(prompt="compact/1").to_json()
COMMON: dict[str, Any] = {
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "gradient_checkpointing": False,
    "save_every_steps": 3,
    "validation": {"every_steps": 3, "num_items": 6, "max_new_tokens": 8},
}


def launched(context: RunContext, processes: int) -> str:
    launch = context.launch.model_copy(update={"processes": processes})
    return context.model_copy(update={"launch": launch}).to_json()


def weights(context: RunContext, manifest_uri: str, folder: Path) -> dict[str, torch.Tensor]:
    storage = Storage(context.storage)
    manifest = Manifest.read(storage, manifest_uri)
    found = fetch_model(storage, manifest.files["model"], folder)
    load_model(found)  # it is a whole, servable model
    return load_file(found / "model.safetensors")


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all weights."""
    assert found.keys() == expected.keys()
    return float(sum((found[name] - tensor).square().sum() for name, tensor in expected.items()) ** 0.5)


def test_two_processes_train_the_weights_that_one_does(context: RunContext, small_world: str, tmp_path: Path) -> None:
    one = SFTConfig(**COMMON, batch_size=8).to_json()
    expected = weights(context, sft.python_func(launched(context, 1), one, MODEL, small_world), tmp_path / "one")
    differences: dict[str, float] = {}
    for deepspeed in ("none", "zero2", "zero3"):
        two = SFTConfig(**COMMON, batch_size=4, deepspeed=deepspeed).to_json()  # type: ignore[arg-type]
        found = weights(context, sft.python_func(launched(context, 2), two, MODEL, small_world), tmp_path / deepspeed)
        differences[deepspeed] = distance(found, expected)
    halves = SFTConfig(**COMMON, batch_size=4, gradient_accumulation=2).to_json()
    accumulated = weights(
        context, sft.python_func(launched(context, 1), halves, MODEL, small_world), tmp_path / "halves"
    )
    differences["accumulated"] = distance(accumulated, expected)
    # The control: another batch gives other weights. A loss averaged over processes or micro-batches, as if all had as
    # many tokens, comes to 0.27 of it.
    other = SFTConfig(**COMMON, batch_size=4).to_json()
    control = distance(
        weights(context, sft.python_func(launched(context, 1), other, MODEL, small_world), tmp_path / "other"), expected
    )
    print(differences, control)
    assert max(differences.values()) < 1e-3 * control  # 2e-5 measured


def test_grpo_with_a_reference_runs_on_two_processes_under_zero3(
    context: RunContext, small_world: str, tmp_path: Path
) -> None:
    config = GRPOConfig(
        **COMMON,
        deepspeed="zero3",
        num_generations=4,
        prompts_per_step=2,
        max_new_tokens=8,
        kl_coefficient=0.04,
        rewards={"temporal": {}},
    ).to_json()
    manifest = grpo.python_func(launched(context, 2), config, MODEL, small_world, "")
    assert Manifest.read(Storage(context.storage), manifest).counts["steps"] == 3
    weights(context, manifest, tmp_path / "grpo")


def test_a_model_that_serves_in_bfloat16_is_trained_in_float32(
    context: RunContext, small_world: str, tmp_path: Path
) -> None:
    # Steps of 1e-5 vanish when they are added to bfloat16 weights one by one; in float32 they add up.
    config = SFTConfig(**(COMMON | {"learning_rate": 1e-5, "max_steps": 3}), batch_size=4).to_json()
    model = ModelConfig(prompt="compact/1", dtype="bfloat16").to_json()
    manifest = sft.python_func(launched(context, 1), config, model, small_world)
    served = weights(context, manifest, tmp_path)
    assert {tensor.dtype for tensor in served.values()} == {torch.bfloat16}
    checkpoint = load_file(
        next((Path(str(context.work_dir)) / "sft").glob("*/checkpoints/checkpoint-3")) / "model.safetensors"
    )
    assert {tensor.dtype for tensor in checkpoint.values()} == {torch.float32}
