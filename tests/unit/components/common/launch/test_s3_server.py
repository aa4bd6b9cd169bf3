"""The workspace's S3 server keeps data and keys, serves nobody else, and makes way for another endpoint."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import pytest
from vthink.components.common.launch import workspace
from vthink.components.common.launch.process import LaunchError, free_port
from vthink.components.common.launch.supervisor import descendants
from vthink.components.common.launch.workspace import S3Endpoint, Workspace
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.names import StorageError
from vthink.components.common.storage.s3 import Storage
from vthink.tests.unit.components.common.launch.processes import until


def test_the_local_s3_server_keeps_its_data_and_its_keys_over_a_restart(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    own_environment.setenv("AWS_SESSION_TOKEN", "of the user's own account")
    own_environment.setenv("AWS_PROFILE", "of the user's own account")
    own_environment.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    for attempt in range(2):
        endpoint = Workspace(tmp_path).start_s3()
        try:
            endpoint.export()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", endpoint.url)
            storage = Storage(StorageConfig(bucket="kept"))
            storage.ensure_bucket()
            if attempt == 0:
                storage.write_bytes("s3://kept/a", b"kept")
            assert storage.read_bytes("s3://kept/a") == b"kept"
            assert endpoint.process is not None
            [server] = descendants(endpoint.process.pid)
            arguments = Path(f"/proc/{server}/cmdline").read_bytes()
            assert endpoint.secret_key is not None
            assert endpoint.secret_key.encode() not in arguments
        finally:
            endpoint.stop()
        del os.environ["AWS_ENDPOINT_URL_S3"]


def test_what_one_server_of_a_workspace_stores_another_soon_sees(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    # `vthink ui` beside a run.
    workspace = Workspace(tmp_path)
    run, ui = workspace.start_s3(), workspace.start_s3()
    try:
        run.export()
        writer, reader = (Storage(StorageConfig(bucket="kept", endpoint_url=end.url)) for end in (run, ui))
        writer.ensure_bucket()
        writer.write_bytes("s3://kept/a/one", b"1")
        until(lambda: reader.exists("s3://kept/a/one"))
        writer.write_bytes("s3://kept/a/two", b"2")
        until(lambda: [item.uri for item in reader.list("s3://kept/a")] == ["s3://kept/a/one", "s3://kept/a/two"])
        writer.write_bytes("s3://kept/a/two", b"longer")
        until(lambda: reader.read_bytes("s3://kept/a/two") == b"longer")
        writer.delete("s3://kept/a/one")
        until(lambda: not reader.exists("s3://kept/a/one"))
    finally:
        run.stop()
        ui.stop()


def test_the_local_s3_server_refuses_other_keys(tmp_path: Path, own_environment: pytest.MonkeyPatch) -> None:
    endpoint = Workspace(tmp_path).start_s3()
    try:
        S3Endpoint(endpoint.url, "someone", "else").export()
        with pytest.raises(StorageError, match="credentials"):
            Storage(StorageConfig(bucket="x")).check()
    finally:
        endpoint.stop()


@pytest.mark.parametrize("name", ["VTHINK_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
def test_an_existing_s3_endpoint_is_used_and_nothing_started(
    tmp_path: Path, own_environment: pytest.MonkeyPatch, name: str
) -> None:
    own_environment.setenv(name, "https://s3.example.com")
    own_environment.setenv("AWS_ACCESS_KEY_ID", "mine")
    endpoint = Workspace(tmp_path).start_s3()
    assert endpoint == S3Endpoint("https://s3.example.com")
    endpoint.export()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert not (tmp_path / "credentials.json").exists()


def test_the_s3_server_takes_another_port_when_somebody_has_the_first(
    tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        ports = iter([somebody.getsockname()[1], free_port()])
        own_environment.setattr(workspace, "free_port", lambda: next(ports))
        endpoint = Workspace(tmp_path).start_s3()
        try:
            assert not endpoint.url.endswith(f":{somebody.getsockname()[1]}")
            endpoint.export()
            Storage(StorageConfig(bucket="somewhere")).ensure_bucket()
        finally:
            endpoint.stop()


def test_a_machine_without_rclone_is_told_what_to_install(tmp_path: Path, own_environment: pytest.MonkeyPatch) -> None:
    own_environment.setenv("PATH", str(tmp_path))
    own_environment.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match=r"needs rclone: pip install 'vthink\[local\]'"):
        Workspace(tmp_path).start_s3()
