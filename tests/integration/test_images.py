"""The images build, and every stage runs in them as on a cluster: the compiled command, uid 1000, a read-only root.

Building takes minutes, so it is done on demand: ``VTHINK_PODMAN=1 pytest tests/integration/test_images.py``, as root.
With CPU builds of PyTorch, over a base image that debootstrap makes here: no image registry is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from vthink import __version__
from vthink.components.common.config import RunContext, StorageConfig, TrackingConfig
from vthink.components.common.storage import Manifest, Storage
from vthink.pipelines.config import load
from vthink.pipelines.pipeline import IR_FILE, arguments

if os.environ.get("VTHINK_PODMAN") != "1":
    pytest.skip("builds images: set VTHINK_PODMAN=1", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MICRO = Path(__file__).with_name("micro.yaml")
BASE = os.environ.get("BASE", "localhost/vthink-base:bookworm")
IMAGES = ("control", "data", "train", "evaluate", "serve")
PACKAGES = "python3.11,python3-pip,python3.11-venv,ca-certificates"
CONTAINERS_CONF = """
[containers]
default_ulimits=["nofile=10000:10000","nproc=30000:30000"]
netns="host"
cgroups="enabled"
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""


def podman(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["podman", *command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"podman {' '.join(command[:2])}…\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """podman that works without systemd, and the base image."""
    settings = tmp_path_factory.mktemp("podman") / "containers.conf"
    settings.write_text(CONTAINERS_CONF)
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = str(settings)
    if subprocess.run(["podman", "image", "exists", BASE]).returncode:
        root = tmp_path_factory.mktemp("base") / "root"
        made = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
        subprocess.run(made, check=True, capture_output=True)
        packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        podman("import", "-", BASE, stdin=packed.stdout)
        shutil.rmtree(root)
    yield
    os.environ.pop("CONTAINERS_CONF")
    if before is not None:
        os.environ["CONTAINERS_CONF"] = before


@pytest.fixture(scope="module")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All images, built with the CPU lock, by name."""
    wheels = subprocess.run(
        ["pip", "config", "get", "global.find-links"], capture_output=True, text=True
    ).stdout.strip()
    settings = tmp_path_factory.mktemp("pip") / "pip.conf"
    settings.write_text("[global]\nfind-links = /wheels\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    options = ["--network", "host", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", "--volume", f"{wheels}:/wheels:ro"]
    environment = os.environ | {"BASE": BASE, "PIP_CONF": str(settings), "REGISTRY": "localhost", "ENGINE": "podman"}
    built = subprocess.run(
        [str(ROOT / "docker/build"), "--cpu", *IMAGES, "--", *options], env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return {name: f"localhost/vthink-{name}-python:{__version__}-cpu" for name in IMAGES}


class Cluster:
    """Runs the compiled pipeline's steps one by one, as KFP would, in containers as Kubernetes would make them."""

    def __init__(self, images: dict[str, str], folder: Path) -> None:
        self.images = images
        self.folder = folder
        self.executors = next(yaml.safe_load_all(IR_FILE.read_text()))["deploymentSpec"]["executors"]
        self.ran_in: dict[str, str] = {}

    def container(self, image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
        environment = [part for key in keys for part in ("--env", f"{key}={os.environ[key]}")]
        restricted = ["--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "host"]
        mounts = ["--tmpfs", "/tmp:rw,exec,mode=1777", "--volume", f"{self.folder}:/outputs"]
        return podman("run", "--rm", *restricted, *mounts, *environment, *options, self.images[image], *command)

    def step(self, name: str, image: str | None = None, **inputs: Any) -> Any:
        """Run a step and return what it puts out.

        Args:
            name: the component.
            image: another image than the compiled pipeline says.
            inputs: the component's parameters.
        """
        compiled = self.executors[f"exec-{name}"]["container"]
        image = image or compiled["image"].partition("/vthink-")[2].partition("-python:")[0]
        self.ran_in[name] = image
        artifacts = {
            key: {"artifacts": [{"name": key, "type": {"schemaTitle": f"system.{kind}"}, "uri": f"/tmp/{key}"}]}
            for key, kind in (("report", "HTML"), ("metrics", "Metrics"))
            if name == "evaluate"
        }
        outputs = {"parameters": {"Output": {"outputFile": "/outputs/Output"}}, "artifacts": artifacts}
        executor_input = {
            "inputs": {"parameterValues": inputs},
            "outputs": outputs | {"outputFile": "/outputs/executor_output.json"},
        }
        values = [json.dumps(executor_input) if part == "{{$}}" else part for part in compiled["args"]]
        self.container(image, *compiled["command"], *values)
        return json.loads((self.folder / "executor_output.json").read_text())["parameterValues"]["Output"]


@pytest.fixture
def cluster(images: dict[str, str], tmp_path: Path) -> Cluster:
    folder = tmp_path / "outputs"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    return Cluster(images, folder)


def test_a_container_is_not_root_and_cannot_write_to_its_root(cluster: Cluster) -> None:
    for image in IMAGES:
        script = "id -u; touch /tmp/x && echo tmp; touch /opt/code/x || echo refused; which vthink python3"
        said = cluster.container(image, "sh", "-c", script).stdout.split()
        assert said == ["1000", "tmp", "refused", "/opt/code/bin/vthink", "/opt/vthink/bin/python3"]
        shown = json.loads(podman("image", "inspect", cluster.images[image]).stdout)[0]
        assert shown["User"] == "1000:1000"
        assert shown["Labels"]["org.opencontainers.image.version"] == __version__
        assert ("Healthcheck" in shown) == (image == "serve")
        assert not [line for line in shown["Config"]["Env"] if "SECRET" in line or "PASSWORD" in line]
    assert "/etc/pip.conf" not in cluster.container("control", "sh", "-c", "ls /etc/pip.conf || true").stdout


def test_all_stages_run_in_the_images(
    cluster: Cluster, s3: StorageConfig, empty_mlflow_database: Path, tmp_path: Path
) -> None:
    database = cluster.folder / "mlflow.db"
    shutil.copy(empty_mlflow_database, database)
    database.chmod(0o666)
    store = s3.model_copy(update={"prefix": f"images-{tmp_path.name}/"})
    context = RunContext(run_id="images", storage=store, tracking=TrackingConfig(uri="sqlite:////outputs/mlflow.db"))
    given = arguments(load(MICRO), context)

    def section(*names: str) -> dict[str, Any]:
        return {"run": given["run"]} | {"config" if i == 0 else name: given[name] for i, name in enumerate(names)}

    shards = cluster.step("plan-data", **section("data", "video"))
    parts = [cluster.step("prepare-shard", shard=shard, **section("data", "video")) for shard in shards]
    data = cluster.step("merge-data", shards=parts, **section("data", "video"))
    # On a cluster these two launch a TrainJob, whose pods have the image train; here they train themselves.
    sft = cluster.step("sft", image="train", data=data, **section("sft", "model"))
    grpo = cluster.step("grpo", image="train", data=data, policy=sft, **section("grpo", "model"))
    evaluated = cluster.step("evaluate", data=data, sft=sft, grpo=grpo, **section("evaluation", "model"))
    assert cluster.step("gate", evaluation=evaluated, **section("evaluation")) == "pass"
    result = {"evaluation": evaluated, "data": data}
    registered = cluster.step("register", model=grpo, **result, **section("deployment"))
    deployed = cluster.step("deploy", registered=registered, **result, **section("deployment"))

    assert Manifest.read(Storage(store), deployed).details["alias"] == "champion"
    assert cluster.ran_in == {
        "plan-data": "data",
        "prepare-shard": "data",
        "merge-data": "data",
        "sft": "train",
        "grpo": "train",
        "evaluate": "evaluate",
        "gate": "control",
        "register": "control",
        "deploy": "serve",
    }
