from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.storage.names import StorageError
from vthink.pipelines.config import load
from vthink.pipelines.run.session import find_manifest, session


def test_a_session_brings_up_a_store_and_leaves_the_environment_as_it_was(elsewhere):
    before = dict(os.environ)
    with session(load("laptop"), elsewhere) as opened:
        opened.storage.write_bytes("s3://vthink/x", b"1")
        assert (elsewhere / "s3" / "vthink" / "x").read_bytes() == b"1"
        assert os.environ["AWS_ENDPOINT_URL_S3"] == opened.context.storage.endpoint_url
        assert opened.context.tracking.uri == f"sqlite:///{elsewhere}/mlflow.db"
    assert dict(os.environ) == before


def test_a_second_session_is_refused_but_one_that_only_reads_is_not(elsewhere):
    with session(load("laptop"), elsewhere):
        with session(load("laptop"), elsewhere, exclusive=False) as reading:
            assert not reading.storage.exists("s3://vthink/x")
        other = textwrap.dedent(f"""
            from pathlib import Path
            from vthink.pipelines.config import load
            from vthink.pipelines.run.session import session
            with session(load("laptop"), Path({str(elsewhere)!r})): pass
        """)
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "UserError" in done.stderr
        assert f"in use by process {os.getpid()}" in done.stderr


def test_a_manifest_is_found_by_uri_prefix_and_folder(elsewhere, manifest):
    with session(load("laptop"), elsewhere) as opened:
        uri = manifest(opened, "sft", "0123")
        assert find_manifest(opened, uri) == uri
        assert find_manifest(opened, uri.removesuffix("manifest.json")) == uri
        assert find_manifest(opened, uri.removesuffix("/manifest.json")) == uri
        assert find_manifest(opened, str(elsewhere / "s3" / "vthink" / "sft" / "0123")) == uri
        with pytest.raises(StorageError, match="does not exist"):
            find_manifest(opened, "s3://vthink/sft/4567/")
        with pytest.raises(UserError, match="neither an s3:// URI nor a folder below"):
            find_manifest(opened, "/somewhere")
