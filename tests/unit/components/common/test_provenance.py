"""What a result depends on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from vthink.components.common import provenance


def test_the_commit_of_an_image_is_the_one_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTHINK_GIT_COMMIT", "abc")
    assert provenance.git_commit() == "abc"


def test_the_commit_of_a_checkout_is_its_head_and_says_when_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VTHINK_GIT_COMMIT", raising=False)
    package = tmp_path / "repository"
    module = package / "components" / "common" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text(Path(provenance.__file__).read_text())
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() is None

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(package), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert provenance.git_commit() == head
    module.write_text("changed")
    assert provenance.git_commit() == f"{head}-dirty"
    # A package inside somebody's repository, as in an environment kept there, has not its commit.
    nested = package / "env" / "vthink" / "components" / "common" / "provenance.py"
    nested.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(nested))
    assert provenance.git_commit() is None


def test_versions_name_the_packages_a_result_depends_on() -> None:
    versions = provenance.package_versions()
    assert versions["python"].startswith("3.")
    assert {"vthink", "boto3", "mlflow"} <= set(versions)
