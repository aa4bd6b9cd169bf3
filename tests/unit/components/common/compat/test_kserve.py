"""What KServe's server does that `compat.kserve` works around; when a test here fails, so much of that can go."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import inspect, json, logging, sys
import kserve
from kserve import model_server
from kserve.protocol.rest.server import RESTServer
parameters = inspect.signature(kserve.ModelServer.__init__).parameters
rest = RESTServer("a:b", None, None, 8080)
print(json.dumps({"port": parameters["http_port"].default, "parameters": sorted(parameters), "host": rest.config.host,
    "app": type(model_server.app).__name__, "trace": logging.getLogger("kserve.trace").level}))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def upstream() -> dict:
    done = run("--http_port", "1234", "--grace", "1")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_server_takes_the_arguments_of_the_process(upstream: dict) -> None:
    assert upstream["port"] == 1234


def test_importing_the_server_ends_a_process_whose_arguments_it_does_not_like() -> None:
    done = run("--http_port", "not-a-number")
    assert done.returncode == 2
    assert "argument --http_port" in done.stderr


def test_the_server_takes_no_application_and_no_host_and_listens_on_every_address(upstream: dict) -> None:
    assert upstream["app"] == "FastAPI"  # one for the process
    assert not {"app", "application", "host"} & set(upstream["parameters"])
    assert upstream["host"] == "0.0.0.0"


def test_the_timing_of_every_request_is_logged(upstream: dict) -> None:
    assert upstream["trace"] == 0  # nothing keeps its INFO lines back
