"""podman without systemd or an image registry: the base image is made here, by debootstrap."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vthink import __version__

ROOT = Path(__file__).parents[3]
BASE = os.environ.get("BASE", "localhost/vthink-base:bookworm")
IMAGES = ("control", "data", "train", "evaluate", "serve")
RESTRICTED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "host")
"""How a pod of k8s/ runs; the user is the image's."""
PACKAGES = "python3.11,python3-pip,python3.11-venv,ca-certificates"
CONTEXT = (".dockerignore", "LICENSE", "README.md", "__init__.py", "py.typed", "pyproject.toml")
CONTAINERS_CONF = """
[containers]
default_ulimits=["nofile=10000:10000","nproc=30000:30000"]
netns="host"
cgroups="enabled"
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{' '.join(command[:3])} …\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """podman's images belong to the machine: other workers of pytest-xdist wait, and find what was made."""
    with (Path(tempfile.gettempdir()) / "vthink-podman.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """``podman ARGUMENTS``, whose output it returns; the base image is there."""
    if shutil.which("podman") is None or shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("needs podman and debootstrap, as root")
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text(CONTAINERS_CONF)
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = str(settings)
    with _alone():
        if subprocess.run(["podman", "image", "exists", BASE]).returncode:
            root = tmp_path_factory.mktemp("base") / "root"
            _output("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root))
            with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
                subprocess.run(["podman", "import", "-", BASE], stdin=packed.stdout, check=True, capture_output=True)
            shutil.rmtree(root)
    yield lambda *arguments: _output("podman", *arguments)
    del os.environ["CONTAINERS_CONF"]
    if before is not None:
        os.environ["CONTAINERS_CONF"] = before


@pytest.fixture(scope="module")
def build(podman: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Build every image with ``docker/build``, with CPU builds of PyTorch, and return their names.

    ``keep``: the packages of each lock to install; None: all.
    """

    def build_all(tag: str, keep: tuple[str, ...] | None = None) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("build")
        for name in CONTEXT:
            shutil.copy(ROOT / name, folder / name)
        for name in ("components", "pipelines", "docker"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for lock in (folder / "docker/locks").glob("*.txt") if keep is not None else ():
            entries = re.findall(r"(?m)^[a-z].*(?:\n .*)*", lock.read_text())
            lock.write_text("\n".join(entry for entry in entries if entry.partition("==")[0] in keep) + "\n")
        # Folders of wheels that pip knows here are mounted: they have the CPU build of PyTorch.
        known = subprocess.run(["pip", "config", "get", "global.find-links"], capture_output=True, text=True).stdout
        wheels = next((path for path in known.split() if os.path.isdir(path)), str(folder))
        settings = folder / "pip.conf"
        settings.write_text("[global]\nfind-links = /wheels\ncert = /etc/ssl/certs/ca-certificates.crt\n")
        options = [
            "--network",
            "host",
            "--volume",
            "/etc/ssl/certs:/etc/ssl/certs:ro",
            "--volume",
            f"{wheels}:/wheels:ro",
        ]
        environment = {"BASE": BASE, "PIP_CONF": str(settings), "REGISTRY": f"localhost/{tag}", "ENGINE": "podman"}
        with _alone():
            _output(str(folder / "docker/build"), "--cpu", *IMAGES, "--", *options, env=os.environ | environment)
        return {name: f"localhost/{tag}/vthink-{name}-python:{__version__}-cpu" for name in IMAGES}

    return build_all
