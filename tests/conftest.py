"""What tests share: a real S3 server, a real MLflow database, and a run's context over both."""

from __future__ import annotations

import builtins
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from vthink.components.common.compat.torchvision import declare_torchvision_operators
from vthink.components.common.context import RunContext
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.workspace import start_s3
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.tests.released import FOLDER, KFP_API

BUCKET = "vthink-test"
if (FOLDER / KFP_API).is_file():  # fetched by `make crds`
    os.environ.setdefault("VTHINK_CRDS", str(FOLDER))
    os.environ.setdefault("VTHINK_KFP_API", str(FOLDER / KFP_API))
# Tests import the trainers by themselves; a training process does this in training/worker.py.
declare_torchvision_operators()
SMALL_VIDEO = VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)


@pytest.fixture(autouse=True)
def own_print() -> Iterator[None]:
    """`kfp.local` (2.17) puts an indenting `print` in the place of Python's while a step runs; of steps that run side
    by side the last may leave it there, for every test that follows in this process."""
    before = builtins.print
    yield
    builtins.print = before


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder behind the S3 server; an object is the file ``<bucket>/<key>`` in it."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="session")
def s3(s3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageConfig]:
    """A running S3 server with a bucket; its keys are in the environment."""
    log = tmp_path_factory.mktemp("logs") / "s3.log"
    endpoint = start_s3(s3_folder, "test-access-key", "test-secret-key", log)
    before = dict(os.environ)
    endpoint.export()
    # The configuration says where the server is. In the environment it would also turn off the servers that
    # a test of `vthink run` wants to see started.
    del os.environ["AWS_ENDPOINT_URL_S3"]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    config = StorageConfig(endpoint_url=endpoint.url, bucket=BUCKET)
    Storage(config).ensure_bucket()
    yield config
    endpoint.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def storage(s3: StorageConfig, request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The S3 store with a prefix of this test's own."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", request.node.name)
    return Storage(s3.model_copy(update={"prefix": f"{name}-{tmp_path.parent.name}-{tmp_path.name}/"}))


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; creating one takes MLflow seconds, copying it does not."""
    from vthink.components.common.tracking.client import registry_client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    registry_client(TrackingConfig(uri=f"sqlite:///{path}")).search_experiments()
    return path


@pytest.fixture
def tracking(empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    """MLflow on a SQLite file of this test's own."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_mlflow_database, path)
    return TrackingConfig(uri=f"sqlite:///{path}", experiment="test")


@pytest.fixture
def context(storage: Storage, tracking: TrackingConfig, tmp_path: Path) -> RunContext:
    """A run whose artifacts, metrics and scratch space are this test's own."""
    return RunContext(
        run_id="test-run",
        work_dir=str(tmp_path / "work"),
        storage=storage.config,
        tracking=tracking,
        launch=LaunchConfig(threads=1),
    )


@pytest.fixture(scope="session")
def small_world(s3: StorageConfig, empty_mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Manifest of a prepared set of a few generated videos and pictures, all kinds of question (bucket's root)."""
    from vthink.components.data_prep.config import DataPrepConfig, SynthesizeConfig
    from vthink.components.data_prep.prepare import prepare_data

    world = SynthesizeConfig(
        num_train=32,
        num_validation=16,
        num_test=24,
        images=0.1,
        mix={"direction": 4, "order": 1, "count": 1, "ocr": 1, "duration": 1, "describe": 1},
    )
    folder = tmp_path_factory.mktemp("world")
    database = shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    tracking = TrackingConfig(uri=f"sqlite:///{database}")
    run = RunContext(run_id="small-world", storage=s3, tracking=tracking, work_dir=str(folder))
    config = DataPrepConfig(synthesize=world, workers=1)
    return prepare_data(run.to_json(), config.to_json(), SMALL_VIDEO.to_json())


@pytest.fixture
def prepared(small_world: str, s3: StorageConfig, tmp_path: Path) -> PreparedSet:
    """The small world, opened."""
    return PreparedSet.open(Storage(s3), small_world, tmp_path / "cache")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be left out (``VTHINK_REQUIRE_ALL=1``, as in CI), a skipped test has failed. One that failed as
    expected was not left out."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("VTHINK_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"VTHINK_REQUIRE_ALL=1 forbids skipping: {call.excinfo.value if call.excinfo else 'skipped'}"
    return report
