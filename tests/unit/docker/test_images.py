"""What the images are built from: pinned, hashed, the same everywhere, CUDA where there are GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
EXTRAS = {
    "control": {"cluster", "mlflow-server"},
    "data": {"data"},
    "train": {"train", "vllm"},
    "evaluate": {"evaluate"},
    "serve": {"serve", "cluster"},
}
IMAGES = tuple(EXTRAS)
GPU = ("train", "evaluate", "serve")


def pins(text: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes of every package of a lock file.

    Raises:
        ValueError: a line that pins nothing, or a package without hashes.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    for entry in re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*$", "", text)).splitlines():
        if not entry.strip():
            continue
        match = re.fullmatch(
            r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+?)\s*(?:;[^-]*)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", entry
        )
        if match is None:
            raise ValueError(f"not a package with version and hashes: {entry[:80]}")
        found[canonicalize_name(match[1])] = (match[2], set(re.findall(r"[0-9a-f]{64}", match[3])))
    return found


def lock(name: str) -> dict[str, tuple[str, set[str]]]:
    return pins((DOCKER / "locks" / f"{name}.txt").read_text())


def requirements(extras: set[str]) -> list[Requirement]:
    """What pyproject.toml asks for with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, todo = list(project["dependencies"]), list(extras)
    while todo:
        for line in project["optional-dependencies"][todo.pop()]:
            requirement = Requirement(line)
            if requirement.name == "vthink":
                todo += requirement.extras
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


def cpu_builds(locked: dict[str, tuple[str, set[str]]], cpu: dict[str, tuple[str, set[str]]]) -> list[str]:
    """Why a lock for GPUs would not give a CUDA build of torch."""
    version, hashes = locked["torch"]
    found = [f"{name} {version}" for name, (version, _) in locked.items() if version.endswith("+cpu")]
    if hashes & cpu["torch"][1]:
        found.append(f"torch {version} has the hash of the CPU build")
    if not any(name.startswith("nvidia-cublas") for name in locked):
        found.append(f"torch {version} comes without CUDA's libraries")
    return found


@pytest.mark.parametrize("name", [*IMAGES, "cpu"])
def test_a_lock_pins_everything_by_hash_and_names_no_index(name: str) -> None:
    text = (DOCKER / "locks" / f"{name}.txt").read_text()
    assert len(pins(text)) > 50
    assert not re.search(r"://|--(extra-)?index-url|--find-links| @ ", text)


@pytest.mark.parametrize("name", [*IMAGES, "cpu"])
def test_a_lock_is_what_pyproject_asks_for(name: str) -> None:
    locked = lock(name)
    for requirement in requirements(EXTRAS.get(name) or set().union(*EXTRAS.values()) - {"vllm"}):
        version = locked[canonicalize_name(requirement.name)][0]
        assert requirement.specifier.contains(Version(version).public), f"{requirement}: run docker/lock"


@pytest.mark.parametrize("name", GPU)
def test_a_lock_for_gpus_takes_cuda_builds(name: str) -> None:
    assert cpu_builds(lock(name), lock("cpu")) == []


def test_a_cpu_build_in_a_lock_for_gpus_is_noticed() -> None:
    train, cpu = lock("train"), lock("cpu")
    assert cpu_builds(train | {"torch": ("2.13.0+cpu", train["torch"][1])}, cpu) == ["torch 2.13.0+cpu"]
    assert len(cpu_builds(train | {"torch": ("2.13.0", cpu["torch"][1])}, cpu)) == 1
    assert len(cpu_builds({k: v for k, v in train.items() if "nvidia" not in k}, cpu)) == 1


def test_all_locks_agree_on_every_version() -> None:
    """trl and transformers above all: what CI tests is what runs on GPUs, and what is served is what was trained."""
    versions: dict[str, set[str]] = {}
    for name in [*IMAGES, "cpu"]:
        for package, (version, _) in lock(name).items():
            versions.setdefault(package, set()).add(Version(version).public)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}
    assert {"trl", "transformers", "torch"} <= versions.keys()


def test_the_cpu_lock_has_what_every_image_has_but_cuda() -> None:
    # vLLM is another package for CPUs (tests/vllm/environment.py), and nearly all that it needs is for GPUs.
    without_vllm = [name for name in IMAGES if "vllm" not in EXTRAS[name]]
    asked = {canonicalize_name(requirement.name) for requirement in requirements({"train"})}
    rest = {*asked, *(package for name in without_vllm for package in lock(name))} - lock("cpu").keys()
    assert not [package for package in rest if not re.match(r"nvidia-|cuda-|triton$", package)]


def test_launchers_and_data_preparation_have_no_torch() -> None:
    for name in ("control", "data"):
        assert not {"torch", "transformers", "trl", "deepspeed"} & lock(name).keys()
    assert "trl" not in lock("serve").keys() | lock("evaluate").keys()


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==2.13.0", "torch @ file:///x --hash=sha256:" + "0" * 64])
def test_a_line_without_version_and_hash_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a package"):
        pins(line)


def dockerfile(name: str) -> list[str]:
    """The instructions of an image, each on one line."""
    text = re.sub(r"(?m)^#.*\n", "", (DOCKER / f"Dockerfile.{name}").read_text())
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_and_installs_only_what_is_locked(name: str) -> None:
    lines = dockerfile(name)
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert [line for line in final if line.startswith("USER")] == ["USER 1000:1000"]
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert not [line for line in final if "pip install" in line or line.startswith("ADD")]
    assert not [line for line in lines if re.search(r"(?i)(ARG|ENV).*(secret|password|token|_key)", line)]
    assert f"ARG LOCK={name}" in lines
    labels = " ".join(line for line in final if line.startswith("LABEL"))
    assert {"title", "description", "licenses", "version", "revision"} <= set(re.findall(r"image\.(\w+)=", labels))
    assert any(line.startswith("HEALTHCHECK") for line in final) == any(line.startswith("EXPOSE") for line in final)


def test_every_image_that_the_pipeline_names_can_be_built() -> None:
    named = set()
    for path in [*(ROOT / "components").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        named |= set(re.findall(r"vthink-(\w+)-python:", path.read_text()))
    assert {"control", "data", "evaluate", "serve"} <= named <= set(IMAGES)
    for name in IMAGES:
        assert (DOCKER / f"Dockerfile.{name}").is_file()


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_build_works_with_podman_and_docker(engine: str, tmp_path: Path) -> None:
    """What the script asks the engine for; tests/integration/test_images.py builds for real."""
    calls = tmp_path / "calls"
    fake = tmp_path / engine
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {calls}\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin", "REGISTRY": "r.example/x", "ENGINE": str(fake)}
    command = [str(DOCKER / "build"), "--push", "data", "train", "--", "--network", "host"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    build, push, *_ = calls.read_text().splitlines()
    assert build.startswith("build --file docker/Dockerfile.data --build-arg LOCK=data --build-arg VERSION=")
    assert "--network host" in build
    assert ("--format docker" in build) == (engine == "podman")
    assert re.fullmatch(r"push r\.example/x/vthink-data-python:[0-9.]+", push)
    assert len(calls.read_text().splitlines()) == 4


def test_build_says_which_images_there_are() -> None:
    result = subprocess.run([str(DOCKER / "build"), "trian"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no image 'trian'; there are: control data train evaluate serve" in result.stderr
