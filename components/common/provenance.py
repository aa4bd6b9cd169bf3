"""Which code and packages a result comes from."""

import contextlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def git_commit() -> str | None:
    """Commit of this package's source, with ``-dirty`` when it has uncommitted changes; None when unknown. An image
    says it in ``VTHINK_GIT_COMMIT``. A repository that merely contains the environment does not count."""
    if commit := os.environ.get("VTHINK_GIT_COMMIT"):
        return commit
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            commit = git("rev-parse", "HEAD")
            return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    return None


def package_versions() -> dict[str, str]:
    """Versions of the installed packages on which a result depends."""
    names = (
        "vthink", "torch", "transformers", "trl", "deepspeed", "peft", "accelerate", "datasets", "numpy", "decord",
        "av", "kfp", "mlflow", "kserve", "vllm", "boto3", "pydantic",
    )  # fmt: skip
    versions = {"python": sys.version.split()[0]}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
