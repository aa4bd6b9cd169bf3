"""The wheel is complete, and its names do not collide with a user's own folders."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the repository stays clean."""
    source, out = tmp_path_factory.mktemp("source") / "vthink", tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not re.findall(r".*(?:Warning|deprecated).*", done.stdout + done.stderr), "the installation warns"
    return next(out.glob("vthink-*.whl"))


def test_the_wheel_holds_every_module_and_data_file_and_no_tests(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("components", "pipelines"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"vthink/{path.relative_to(ROOT)}" in held
    assert not [name for name in held if "tests/" in name]
    assert "vthink/py.typed" in held
    assert [name for name in held if name.endswith("licenses/LICENSE")]


def test_the_installed_wheel_works_beside_a_user_s_own_components_and_pipelines(wheel, tmp_path):
    site, user = tmp_path / "site", tmp_path / "user"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("components", "pipelines"):
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own package was imported')\n")
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{user}"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=user, env=env, capture_output=True, text=True, check=False
        )

    where = python("-c", "import vthink; print(vthink.__file__)")
    assert Path(where.stdout.strip()) == site / "vthink" / "__init__.py"
    listed = python("-m", "vthink.pipelines.cli.main", "config", "presets")
    assert listed.returncode == 0, listed.stderr
    assert "video_r1_7b" in listed.stdout
    compiled = python("-m", "vthink.pipelines.cli.main", "compile", "--output", "vthink.yaml")
    assert compiled.returncode == 0, compiled.stderr
    assert (user / "vthink.yaml").read_bytes() == (ROOT / "pipelines" / "vthink.yaml").read_bytes()
    # The folders do hold what they say: whoever imports them gets the user's.
    assert "the user's own package was imported" in python("-c", "import components").stderr
