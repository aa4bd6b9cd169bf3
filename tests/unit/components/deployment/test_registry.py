"""The registry, and the stage that makes a trained model the candidate, on a real MLflow database."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.deployment.config import DeploymentConfig
from vthink.components.deployment.registry import ModelRegistry, champion, register_model
from vthink.components.deployment.smoke_test import SmokeTestResult

PASSED = SmokeTestResult(passed=True, why="8 of 8")


def test_same_source_gives_the_same_version(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    first = registry.register("s3://b/models/7", None, {"vthink.fingerprint": "a"})
    again = registry.register("s3://b/models/7/", None, {"vthink.fingerprint": "b"})
    other = registry.register("s3://b/models/70/", None, {})
    assert (first.version, again.version, other.version) == (1, 1, 2)
    assert first.source == "s3://b/models/7/"
    assert again.tags["vthink.fingerprint"] == "b"
    assert [version.version for version in registry.versions()] == [2, 1]


def test_candidate_is_what_was_registered_last_and_champion_stays(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    assert champion(tracking) is None
    first = registry.register("s3://b/a/", None, {})
    registry.promote(first.version, PASSED)
    second = registry.register("s3://b/b/", None, {})
    assert second.aliases == ("candidate",)
    found = champion(tracking)
    assert found is not None
    assert found.version == first.version
    assert found.source == "s3://b/a/"


@pytest.mark.parametrize("passed", [None, False, "yes", 1])
def test_champion_moves_only_with_a_passed_smoke_test(tracking: TrackingConfig, passed: Any) -> None:
    registry = ModelRegistry(tracking)
    version = registry.register("s3://b/a/", None, {})
    with pytest.raises(UserError, match="smoke test"):
        registry.promote(version.version, SmokeTestResult(passed=passed, why=""))
    assert champion(tracking) is None
    registry.promote(version.version, PASSED)
    assert champion(tracking) is not None


def test_version_that_does_not_exist_is_one_line(tracking: TrackingConfig) -> None:
    registry = ModelRegistry(tracking)
    registry.register("s3://b/a/", None, {})
    with pytest.raises(UserError) as caught:
        registry.promote(9, PASSED)
    assert "\n" not in str(caught.value)
    assert champion(tracking) is None


# --- the stage


def manifests(storage: Storage, folder: Path, complete: bool = True) -> dict[str, str]:
    root = storage.config.root_uri
    uris = {}
    for stage in ("grpo", "evaluate", "prepare"):
        manifest = Manifest(
            stage=stage,
            fingerprint=stage[0] * 16,
            uri=join(root, stage) + "/",
            files={"model": join(root, "grpo", "model/")} if stage == "grpo" else {},
            metrics={
                "evaluation/grpo/ordered/accuracy": 0.75,
                "evaluation/grpo/ordered/accuracy/ocr": 0.5,
                "evaluation/base/ordered/accuracy": 0.2,
            }
            if stage == "evaluate"
            else {},
            details={"dtype": "float32"} if stage == "evaluate" else {},
        )
        uris[stage] = manifest.write(storage)
    if complete:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        storage.upload_dir(folder, join(root, "grpo", "model/"))
    return uris


def test_stage_registers_with_the_way_back_to_the_data(context: RunContext, storage: Storage, tmp_path: Path) -> None:
    uris = manifests(storage, tmp_path / "model")
    arguments = (context.to_json(), DeploymentConfig().to_json(), uris["grpo"], uris["evaluate"], uris["prepare"])
    uri = register_model(*arguments)
    manifest = Manifest.read(storage, uri)
    assert manifest.details["version"] == 1
    assert manifest.details["alias"] == "candidate"
    assert manifest.files["model"].endswith("/")
    version = ModelRegistry(context.tracking).alias("candidate")
    assert version is not None
    assert version.source == manifest.files["model"]
    assert version.tags["vthink.data_uri"] == uris["prepare"]
    assert version.tags["vthink.evaluation_uri"] == uris["evaluate"]
    assert version.tags["vthink.fingerprint"] == "g" * 16
    assert version.tags["vthink.dtype"] == "float32"
    assert version.tags["metric.evaluation/grpo/ordered/accuracy"] == "0.75"
    assert not any("ocr" in tag or "base" in tag for tag in version.tags)
    assert register_model(*arguments) == uri
    assert len(ModelRegistry(context.tracking).versions()) == 1
    assert Manifest.read(storage, uri) == manifest


def test_stage_registers_again_in_an_emptied_registry(
    context: RunContext, storage: Storage, empty_mlflow_database: Path, tmp_path: Path
) -> None:
    uris = manifests(storage, tmp_path / "model")
    arguments = (context.to_json(), DeploymentConfig().to_json(), uris["grpo"], uris["evaluate"], uris["prepare"])
    register_model(*arguments)
    shutil.copy(empty_mlflow_database, str(context.tracking.uri).removeprefix("sqlite:///"))
    register_model(*arguments)
    assert ModelRegistry(context.tracking).alias("candidate") is not None


def test_half_uploaded_model_is_not_registered(context: RunContext, storage: Storage, tmp_path: Path) -> None:
    uris = manifests(storage, tmp_path / "model", complete=False)
    with pytest.raises(UserError, match="complete"):
        register_model(context.to_json(), DeploymentConfig().to_json(), uris["grpo"], uris["evaluate"], uris["prepare"])
    assert ModelRegistry(context.tracking).versions() == []
