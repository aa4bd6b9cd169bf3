"""Registration and deployment end to end: a real world, prepared data, evaluation, MLflow, S3 and a served model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.model.config import ModelConfig
from vthink.components.common.model.store import ensure_base_model
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import fingerprint, join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.data_prep.config import DataPrepConfig, SynthesizeConfig
from vthink.components.data_prep.prepare import prepare_data
from vthink.components.deployment.config import DeploymentConfig, ServerConfig
from vthink.components.deployment.deploy import deploy_model
from vthink.components.deployment.registry import ModelRegistry, champion, register_model
from vthink.components.deployment.smoke_test import SmokeTest, SmokeTestResult
from vthink.components.evaluation import evaluate
from vthink.components.evaluation.config import EvaluationConfig

VIDEO = VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)
SECTION = DeploymentConfig(smoke_items=6, start_timeout_s=120, server=ServerConfig(max_new_tokens=24))


@dataclass
class Run:
    """What the stages before deployment left behind; an untrained model stands in for a trained one."""

    context: RunContext
    storage: Storage
    data: str
    grpo: str
    evaluation: str

    def candidate(self, seed: int) -> str:
        """Manifest of a training that produced the tiny model of this seed."""
        uri = ensure_base_model(self.storage, ModelConfig(seed=seed), VIDEO)
        key = fingerprint("trained", seed)
        prefix = join(self.storage.config.root_uri, "grpo", key) + "/"
        return Manifest(stage="grpo", fingerprint=key, uri=prefix, files={"model": uri}).write(self.storage)

    def register(self, model: str | None = None, section: DeploymentConfig = SECTION) -> str:
        return register_model(self.context.to_json(), section.to_json(), model or self.grpo, self.evaluation, self.data)

    def deploy(self, registered: str, section: DeploymentConfig = SECTION) -> str:
        return deploy_model(self.context.to_json(), section.to_json(), registered, self.evaluation, self.data)


@pytest.fixture(scope="module")
def trained(s3: StorageConfig, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    storage = Storage(s3.model_copy(update={"prefix": "test-deployment/"}))
    context = RunContext(
        run_id="trained",
        work_dir=str(folder / "work"),
        storage=storage.config,
        tracking=TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="test"),
        launch=LaunchConfig(threads=1),
    )
    world = SynthesizeConfig(num_train=4, num_validation=0, num_test=12, size=64)
    data = prepare_data(context.to_json(), DataPrepConfig(synthesize=world).to_json(), VIDEO.to_json())
    done = Run(context, storage, data, "", "")
    done.grpo = done.candidate(seed=0)
    settings = EvaluationConfig(max_new_tokens=24, conditions=(), bootstrap_resamples=100, report_items=0)
    done.evaluation = evaluate.evaluate_models(
        context.to_json(), settings.to_json(), ModelConfig().to_json(), data, grpo_uri=done.grpo
    )
    return done


@contextlib.contextmanager
def restored(storage: Storage, contents: bool = False) -> Iterator[None]:
    """What is done to the store inside is undone; ``contents``: objects of before may change or go, too."""
    root = storage.config.root_uri
    before = {item.uri: storage.read_bytes(item.uri) if contents else b"" for item in storage.list(root)}
    yield
    for item in list(storage.list(root)):
        if item.uri not in before:
            storage.delete(item.uri)
    for uri, data in before.items():
        if contents and (not storage.exists(uri) or storage.read_bytes(uri) != data):
            storage.write_bytes(uri, data)


@pytest.fixture
def finished(trained: Run, tracking: TrackingConfig, tmp_path: Path) -> Iterator[Run]:
    """The run with an empty registry of this test's own, in a store that it may damage."""
    context = trained.context.model_copy(update={"tracking": tracking, "work_dir": str(tmp_path / "work")})
    with restored(trained.storage, contents=True):
        yield dataclasses.replace(trained, context=context)


def servers() -> set[int]:
    """Process ids of the model servers that run now; those of tests beside this one do not count."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any("deployment.server" in part for part in process.info["cmdline"] or []):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get("PYTEST_XDIST_WORKER") == worker:
                    found.add(process.pid)
    return found


@dataclass
class Deployed:
    """The first version, in service."""

    run: Run
    database: Path
    manifest_uri: str
    servers: set[int]
    """Those that ran while the smoke test did."""
    left: set[int]
    """Those that still run."""


@pytest.fixture(scope="module")
def deployed(trained: Run, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    database = Path(shutil.copy(empty_mlflow_database, folder / "mlflow.db"))
    tracking = trained.context.tracking.model_copy(update={"uri": f"sqlite:///{database}"})
    context = trained.context.model_copy(update={"tracking": tracking, "work_dir": str(folder / "work")})
    run = dataclasses.replace(trained, context=context)
    with restored(trained.storage):
        registered = run.register()
        assert champion(tracking) is None
        before = servers()
        during: set[int] = set()
        ask_one = SmokeTest.ask_one

        def seen(test: SmokeTest, url: str) -> dict[str, Any]:
            during.update(servers() - before)
            return ask_one(test, url)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SmokeTest, "ask_one", seen)
            uri = run.deploy(registered)
        yield Deployed(run, database, uri, during, servers() - before)


@pytest.fixture
def in_service(deployed: Deployed, tmp_path: Path) -> Iterator[Run]:
    """The run with the first version in service, in a registry of this test's own."""
    database = shutil.copy(deployed.database, tmp_path / "mlflow.db")
    tracking = deployed.run.context.tracking.model_copy(update={"uri": f"sqlite:///{database}"})
    context = deployed.run.context.model_copy(update={"tracking": tracking, "work_dir": str(tmp_path / "work")})
    with restored(deployed.run.storage):
        yield dataclasses.replace(deployed.run, context=context)


def test_candidate_that_agrees_with_evaluation_becomes_champion(deployed: Deployed, in_service: Run) -> None:
    manifest = Manifest.read(in_service.storage, deployed.manifest_uri)
    smoke = in_service.storage.read_json(manifest.files["smoke"])
    assert smoke["asked"] == 6
    assert smoke["agreement"] == 1.0
    assert smoke["identical"] == 1.0
    assert manifest.metrics == {"deployment/agreement": 1.0, "deployment/identical": 1.0}
    question = manifest.details["question"]
    assert question["question"]
    assert question["truth"]
    assert set(question) >= {"answer", "segments", "reasoning", "text", "media"}
    assert manifest.details["replaced"] is None
    now = champion(in_service.context.tracking)
    assert now is not None
    assert now.version == manifest.details["version"] == 1
    assert now.tags["vthink.smoke_test"].startswith("6 of 6")
    assert deployed.servers  # what the next line looks for can be seen
    assert not deployed.left

    written = manifest.created
    assert in_service.deploy(in_service.register()) == deployed.manifest_uri
    assert Manifest.read(in_service.storage, deployed.manifest_uri).created == written  # reused, not repeated


def test_candidate_that_says_something_else_leaves_the_champion(in_service: Run) -> None:
    """The control: another model than the evaluated one is served under the candidate's name."""
    impostor = in_service.register(in_service.candidate(seed=1))
    with pytest.raises(UserError) as caught:
        in_service.deploy(impostor)
    message = str(caught.value)
    assert "\n" not in message
    assert "got the answer that evaluation saw" in message
    assert "in service stays version 1" in message
    registry = ModelRegistry(in_service.context.tracking)
    now, candidate = registry.alias("champion"), registry.alias("candidate")
    assert now is not None
    assert candidate is not None
    assert (now.version, candidate.version) == (1, 2)
    assert "of 6" in candidate.tags["vthink.smoke_test"]
    # Back to the first: it is registered and in service already, so nothing is asked again.
    in_service.deploy(in_service.register())
    assert champion(in_service.context.tracking).version == 1  # type: ignore[union-attr]


@pytest.mark.slow
def test_older_version_can_return_into_service(deployed: Deployed, in_service: Run) -> None:
    registry = ModelRegistry(in_service.context.tracking)
    other = registry.register("s3://elsewhere/model/", None, {})
    registry.promote(other.version, SmokeTestResult(passed=True, why=""))
    assert in_service.deploy(in_service.register()) == deployed.manifest_uri
    assert Manifest.read(in_service.storage, deployed.manifest_uri).details["replaced"] == other.version
    now = champion(in_service.context.tracking)
    assert now is not None
    assert now.version == 1


def _without_weights(run: Run) -> str:
    registered = run.register()
    source = Manifest.read(run.storage, registered).files["model"]
    run.storage.delete(join(source, "model.safetensors"))
    return registered


def _without_media(run: Run) -> str:
    for item in list(run.storage.list(run.storage.config.root_uri)):
        if item.uri.endswith((".mp4", ".png")):
            run.storage.delete(item.uri)
    return run.register()


def _with_other_media(run: Run) -> str:
    for item in list(run.storage.list(run.storage.config.root_uri)):
        if item.uri.endswith(".mp4"):
            run.storage.write_bytes(item.uri, b"not what it was")
    return run.register()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_weights, "model server ended"),
        (_without_media, "no held-out item could be asked again"),
        (_with_other_media, "has changed since"),
    ],
)
def test_what_cannot_be_tested_is_not_deployed(finished: Run, damage: Callable[[Run], str], words: str) -> None:
    registered = damage(finished)
    with pytest.raises(UserError, match=words) as caught:
        finished.deploy(registered)
    assert "in service stays nothing" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert champion(finished.context.tracking) is None
