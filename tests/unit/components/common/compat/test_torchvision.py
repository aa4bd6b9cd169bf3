"""torchvision beside a CPU build of torch."""

import subprocess
import sys

import pytest
import torch

PROCESSOR = "import transformers; transformers.Qwen2VLVideoProcessor()"
DECLARED = """
from vthink.components.common.compat.torch import declare_torchvision_operators
declare_torchvision_operators()
declare_torchvision_operators()
"""


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)


def test_the_qwen_processors_can_be_made_once_the_operators_are_declared():
    assert in_a_new_process(DECLARED + PROCESSOR).returncode == 0


def test_torchvision_as_it_is_can_be_left_alone(tmp_path, monkeypatch):
    """One that can be imported (a build for CPUs) defines the operators itself: declaring them too would break it."""
    (tmp_path / "torchvision.py").write_text(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    code = DECLARED + "import torchvision; print(torchvision.__file__)"
    assert in_a_new_process(code).stdout.strip() == str(tmp_path / "torchvision.py")


@pytest.mark.skipif(bool(torch.version.cuda or torch.version.hip), reason="torchvision's wheels fit this torch")
def test_upstream_still_cannot_be_imported_beside_a_cpu_build_of_torch():
    """Once this fails, compat/torch.py and its calls can go."""
    done = in_a_new_process("import torchvision")
    assert "operator torchvision::nms does not exist" in done.stderr
