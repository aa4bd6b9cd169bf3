"""Every Dockerfile builds an image that is what Kubernetes will be told about it.

Only setuptools is installed of the locks, so that this takes seconds; `test_stages.py` installs them whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from vthink import __version__

from .conftest import IMAGES, RESTRICTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def images(build: Callable[..., dict[str, str]]) -> dict[str, str]:
    return build("bare", keep=("setuptools",))


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_on_a_read_only_root(
    name: str, images: dict[str, str], podman: Callable[..., str]
) -> None:
    script = "id -u; touch /tmp/x && echo tmp; touch /opt/code/x || echo refused; command -v vthink; command -v python3"
    said = podman("run", "--rm", *RESTRICTED, "--entrypoint", "sh", images[name], "-c", script).split()
    assert said == ["1000", "tmp", "refused", "/opt/code/bin/vthink", "/opt/vthink/bin/python3"]


def test_a_root_that_is_not_read_only_would_be_noticed(images: dict[str, str], podman: Callable[..., str]) -> None:
    root = ("--rm", "--network", "host", "--user", "0", "--entrypoint", "sh")
    assert podman("run", *root, images["control"], "-c", "touch /opt/code/x && id -u").split() == ["0"]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_is_and_keeps_no_secret(
    name: str, images: dict[str, str], podman: Callable[..., str]
) -> None:
    shown = json.loads(podman("image", "inspect", images[name]))[0]
    assert shown["User"] == "1000:1000"
    assert shown["Labels"]["org.opencontainers.image.version"] == __version__
    assert shown["Labels"]["org.opencontainers.image.title"] == f"vthink-{name}"
    assert bool(shown.get("Healthcheck")) == (name == "serve")
    found = podman("run", "--rm", *RESTRICTED, "--entrypoint", "sh", images[name], "-c", "ls /etc/pip.conf /src; true")
    assert found == ""  # neither the build's pip.conf nor the source tree


def test_our_code_is_in_the_image_and_nothing_else_of_the_repository(
    images: dict[str, str], podman: Callable[..., str]
) -> None:
    listing = podman("run", "--rm", *RESTRICTED, images["data"], "find", "/opt/code/vthink", "-maxdepth", "1")
    assert {line.rpartition("/")[2] for line in listing.split()} - {"__pycache__"} == {
        "vthink", "__init__.py", "py.typed", "components", "pipelines"
    }  # fmt: skip
