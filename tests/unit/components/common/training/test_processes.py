"""A process among the others of its training: its own accelerator before anything else."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from vthink.components.common.errors import UserError
from vthink.components.common.training.processes import bind_device

PRETENDED = """
import sys, torch
current = [0]
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 8
torch.cuda.current_device = lambda: current[0]
torch.cuda.set_device = lambda device: current.__setitem__(0, device)
from vthink.components.common.launch.job import TrainingJob
TrainingJob.read = classmethod(lambda cls, uri: cls)
TrainingJob.on_this_node = classmethod(lambda cls: cls)
from vthink.components.common.training.worker import start
sys.argv = ["worker", "--job", "s3://none/job.json"]
start("placement_train", "train")
"""


@pytest.mark.parametrize("local_rank", [7])
def test_a_worker_takes_its_own_gpu_before_its_training_is_imported(
    local_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is loaded without naming a device would be on the first one, from all ranks."""
    (tmp_path / "placement_train.py").write_text(
        textwrap.dedent("""
        import torch
        imported = torch.cuda.current_device()
        def train(job):
            print(imported, torch.cuda.current_device())
        """)
    )
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[6]}")
    done = subprocess.run([sys.executable, "-c", PRETENDED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(local_rank)] * 2, done.stderr


def test_more_processes_than_gpus_end_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"no GPU: there are 4; lower launch\.processes"):
        bind_device()


def test_without_a_gpu_nothing_is_bound() -> None:
    assert not torch.cuda.is_available()
    bind_device()
