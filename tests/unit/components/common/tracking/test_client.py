"""MLflow's client: where, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.launch.process import free_port
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.tracking.client import TrackingError, mlflow_environment
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.tracking.run import Tracker


def start(context: RunContext, fingerprint: str = "0123", stage: str = "sft", **config: Any) -> Tracker:
    return Tracker.start(context, stage, fingerprint, config, {"data": "s3://b/data/manifest.json"})


def test_a_version_registered_by_its_prefix_keeps_it_and_takes_an_alias(child: RunContext, client: Any) -> None:
    with start(child) as tracker:
        name = child.tracking.registered_model
        client.create_registered_model(name)
        version = client.create_model_version(name, source="s3://b/models/7/", run_id=tracker.run_id)
        client.set_registered_model_alias(name, "candidate", version.version)
    found = client.get_model_version_by_alias(name, "candidate")
    assert (found.source, found.run_id) == ("s3://b/models/7/", tracker.run_id)


def test_a_missing_tracking_uri_is_named(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"set tracking\.uri or MLFLOW_TRACKING_URI"):
        start(context.model_copy(update={"tracking": TrackingConfig()}))


@pytest.mark.parametrize("uri", ["nonsense://user:secret@host/x", "sqlite:////proc/no/such/folder/x.db"])
def test_an_unusable_tracking_uri_gives_one_line_without_its_password(context: RunContext, uri: str) -> None:
    broken = context.model_copy(update={"tracking": TrackingConfig(uri=uri)})
    with pytest.raises(TrackingError) as error:
        start(broken)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_an_unreachable_tracking_server_gives_one_line(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    away = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError, match="MLflow") as error:
        start(context.model_copy(update={"tracking": away}))
    assert "\n" not in str(error.value)


def test_importing_what_stages_share_loads_neither_torch_nor_mlflow() -> None:
    program = """
        import sys
        from vthink.components.common import config, launch, storage, tracking
        heavy = {"torch", "transformers", "mlflow", "boto3", "numpy", "pandas"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_mlflow_writes_to_our_store_and_tells_nobody(context: RunContext) -> None:
    env = mlflow_environment(StorageConfig(endpoint_url="http://x:1", ca_bundle="/ca.pem", region="eu"))
    assert env["MLFLOW_DISABLE_TELEMETRY"] == env["DO_NOT_TRACK"] == "true"
    assert env["MLFLOW_S3_ENDPOINT_URL"] == "http://x:1"
    assert env["AWS_CA_BUNDLE"] == "/ca.pem"
    assert "MLFLOW_S3_ENDPOINT_URL" not in mlflow_environment(StorageConfig())
