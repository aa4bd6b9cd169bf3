"""Every stage runs in its image as on a cluster: the compiled command, uid 1000, a read-only root.

Building with the whole CPU lock takes minutes and gigabytes, so it is done on demand, as root:
``VTHINK_PODMAN=1 pytest tests/integration/images``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from vthink.components.common.context import RunContext
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.pipelines.config import load
from vthink.pipelines.pipeline import arguments, compile_to

from .conftest import RESTRICTED

if os.environ.get("VTHINK_PODMAN") != "1":
    pytest.skip("builds whole images: set VTHINK_PODMAN=1", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

MICRO = Path(__file__).parents[1] / "micro.yaml"


class Steps:
    """Runs steps of the compiled pipeline, as KFP would, in containers as Kubernetes would make them."""

    def __init__(self, podman: Callable[..., str], images: dict[str, str], folder: Path) -> None:
        self.podman = podman
        self.images = images
        self.folder = folder
        self.pipeline = next(yaml.safe_load_all(compile_to(folder / "vthink.yaml").read_text()))
        self.ran_in: dict[str, str] = {}

    def run(self, name: str, image: str | None = None, **inputs: Any) -> Any:
        """Run a step and return what it puts out.

        Args:
            name: the component.
            image: another image than the compiled pipeline says.
            inputs: the component's parameters.
        """
        compiled = self.pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        defined = self.pipeline["components"][f"comp-{name}"]["outputDefinitions"]
        image = image or compiled["image"].partition("/vthink-")[2].partition("-python:")[0]
        self.ran_in[name] = image
        artifacts = {
            key: {"artifacts": [{"name": key, "type": about["artifactType"], "uri": f"/tmp/{key}"}]}
            for key, about in defined.get("artifacts", {}).items()
        }
        outputs = {"parameters": {"Output": {"outputFile": "/outputs/Output"}}, "artifacts": artifacts}
        executor_input = {
            "inputs": {"parameterValues": inputs},
            "outputs": outputs | {"outputFile": "/outputs/executor_output.json"},
        }
        command = [json.dumps(executor_input) if part == "{{$}}" else part for part in compiled["args"]]
        # As Kubernetes' `command`, KFP's takes the place of the image's entry point.
        first, *rest = compiled["command"]
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
        options = [part for key in keys for part in ("--env", f"{key}={os.environ[key]}")]
        options += ["--tmpfs", "/tmp:rw,exec,mode=1777", "--volume", f"{self.folder}:/outputs", "--entrypoint", first]
        self.podman("run", "--rm", *RESTRICTED, *options, self.images[image], *rest, *command)
        return json.loads((self.folder / "executor_output.json").read_text())["parameterValues"]["Output"]


def test_all_stages_run_in_the_images(
    podman: Callable[..., str],
    build: Callable[..., dict[str, str]],
    s3: StorageConfig,
    empty_mlflow_database: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    folder.chmod(0o777)
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    (folder / "mlflow.db").chmod(0o666)
    store = s3.model_copy(update={"prefix": f"images-{tmp_path.name}/"})
    context = RunContext(run_id="images", storage=store, tracking=TrackingConfig(uri="sqlite:////outputs/mlflow.db"))
    given = arguments(load(MICRO), context)

    def section(config: str, *others: str) -> dict[str, Any]:
        return {"run": given["run"], "config": given[config], **{name: given[name] for name in others}}

    steps = Steps(podman, build("whole"), folder)
    given["run"] = steps.run("begin", run=given["run"], config=given["config"])
    shards = steps.run("plan-data", **section("data", "video"))
    parts = [steps.run("prepare-shard", shard=shard, **section("data", "video")) for shard in shards]
    data = steps.run("merge-data", shards=parts, **section("data", "video"))
    # On a cluster these two launch a TrainJob, whose pods have the image train; here they train themselves.
    sft = steps.run("sft", image="train", data=data, **section("sft", "model"))
    grpo = steps.run("grpo", image="train", data=data, policy=sft, **section("grpo", "model"))
    evaluated = steps.run("evaluate", data=data, sft=sft, grpo=grpo, **section("evaluation", "model"))
    assert steps.run("gate", evaluation=evaluated, **section("evaluation")) == "pass"
    result = {"evaluation": evaluated, "data": data}
    registered = steps.run("register", model=grpo, **result, **section("deployment"))
    deployed = steps.run("deploy", registered=registered, **result, **section("deployment"))

    assert Manifest.read(Storage(store), deployed).details["alias"] == "champion"
    assert steps.ran_in == {
        "begin": "control",
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
