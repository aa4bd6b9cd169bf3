"""A machine, a model and stores that cannot carry a run are told before it starts."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.tracking.config import TrackingConfig
from vthink.pipelines.config import load
from vthink.pipelines.preflight.finding import NotSeenError
from vthink.pipelines.preflight.machine import (
    check_accelerators,
    check_disk,
    check_model,
    check_tracking,
    gpu_memory_gib,
)

BOTH = ("sft", "grpo")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 80 GiB, as nvidia-smi's documentation tells them (2026-12-01; not compared with a GPU)."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 81559\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_large_model_without_a_gpu_is_refused_with_what_would_work(no_gpus: None) -> None:
    with pytest.raises(UserError, match=r"no NVIDIA GPU here, and Qwen/.* B parameters; train on a cluster"):
        check_accelerators(load("video_r1_7b"), BOTH)
    assert "on the CPU, which is enough" in check_accelerators(load("laptop"), BOTH)
    assert check_accelerators(load("video_r1_7b"), ("evaluate",)) == "no training"


def test_more_processes_than_gpus_are_refused_with_the_setting(gpus: None) -> None:
    assert gpu_memory_gib() == pytest.approx([79.6, 79.6], abs=0.1)
    with pytest.raises(UserError, match=r"8 training processes, and 2 GPUs here; --set launch.processes=2"):
        check_accelerators(load("video_r1_7b"), BOTH)


def test_a_layout_that_does_not_fit_is_told_with_one_that_does_or_a_way_out(gpus: None) -> None:
    changes = ["launch.processes=2", "sft.deepspeed=none", "grpo.enabled=false", "evaluation.gate=[]"]
    with pytest.raises(UserError, match=r"sft needs \d+ GiB a GPU, and one has 80; .*(deepspeed=zero3|lora)"):
        check_accelerators(load("video_r1_7b", changes), ("sft",))


def test_what_the_cluster_will_have_is_not_looked_for_here() -> None:
    with pytest.raises(NotSeenError):
        check_accelerators(load("video_r1_7b", ["launch.backend=trainjob"]), BOTH)


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="model_type 'llama' is not supported"):
        check_model(load("laptop", [f"model.name={tmp_path}"]), None)
    assert check_model(load("laptop"), None).startswith("tiny, 0.")


def test_a_model_out_of_reach_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'Qwen/Qwen2.5-VL-7B-Instruct' is neither a folder here nor reachable"):
        check_model(load("video_r1_7b"), None)


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GB free" in check_disk(load("laptop"), tmp_path / "not/there/yet", 40)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**9))
    with pytest.raises(UserError, match=r"a run writes about \d+ GB .* 1 GB are free in .*--workspace"):
        check_disk(load("video_r1_7b"), tmp_path, 1000)


def test_an_mlflow_that_does_not_answer_is_told() -> None:
    config = load("laptop")
    with pytest.raises(UserError, match=r"check tracking.uri, MLFLOW_TRACKING_URI"):
        check_tracking(TrackingConfig(uri="http://127.0.0.1:9"), config.storage)
    assert check_tracking(TrackingConfig(uri="sqlite:////x.db"), config.storage) == "sqlite:////x.db"
