"""Rolling a model out: the test plays KServe's controller, which starts our server for every predictor it sees."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.launch.config import LaunchConfig
from vthink.components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster
from vthink.components.common.model.tiny import CHAT_TEMPLATE
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.rows.sample import Sample
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.config import TrackingConfig
from vthink.components.common.video.config import VideoConfig
from vthink.components.deployment.ask import StructuredAnswer
from vthink.components.deployment.config import DeploymentConfig
from vthink.components.deployment.deploy import deploy_model
from vthink.components.deployment.registry import ModelRegistry, RegisteredVersion, champion, register_model
from vthink.components.deployment.rollout.inference_service import (
    TrainedModel,
    inference_service,
    predictor,
    service_lines,
    vllm_arguments,
)
from vthink.components.evaluation.config import EvaluationConfig
from vthink.pipelines.cli.main import app
from vthink.pipelines.config import load as load_config
from vthink.tests.cluster import validation
from vthink.tests.fakes.controllers import Hand
from vthink.tests.fakes.kserve_controller import Gateway, KServeController
from vthink.tests.fakes.kubernetes_api import ApiServer
from vthink.tests.fakes.model_server import ScriptedModel

Object = dict[str, Any]
KEY = "key-of-the-endpoint"
VIDEO = VideoConfig(num_frames=8, min_pixels=56 * 56, max_pixels=56 * 56)


# --- what the stages before left behind ---------------------------------------------------------------------


@dataclass
class Before:
    """A prepared set, trained models in the store, their evaluation, and the registry."""

    context: RunContext
    storage: Storage
    section: DeploymentConfig
    data: str
    samples: list[Sample]
    cluster: Cluster
    hand: Hand
    kserve: KServeController
    gateway: Gateway

    def model(self, number: int, answers: dict[str, str] | None, folder: Path) -> str:
        """A trained model and its evaluation, registered; the registration's manifest. None: it cannot be served."""
        root = join(self.storage.config.root_uri, f"trained-{number}")
        source = join(root, "model/")
        write_model(self.storage, source, folder / f"model-{number}")
        trained = Manifest(stage="grpo", fingerprint=f"{number:016d}", uri=f"{root}/", files={"model": source})
        right = {s.question: f"<answer>{s.answer}</answer>" for s in self.samples}
        rows = [
            {
                "id": s.id, "model": "grpo", "frames": "ordered", "error": None,
                "token_ids": list(range(len(right[s.question].split(" ")))),
                "response": right[s.question], "answer": StructuredAnswer.parse(right[s.question]).answer,
            }
            for s in self.samples
        ]  # fmt: skip
        items = join(root, "evaluate/items.jsonl")
        self.storage.write_bytes(items, "".join(json.dumps(row) + "\n" for row in rows).encode())
        evaluated = Manifest(
            stage="evaluate",
            fingerprint=f"{number:015d}e",
            uri=join(root, "evaluate/"),
            files={"items": items},
            config=EvaluationConfig(max_new_tokens=64).model_dump(mode="json"),
            details={"candidate": "grpo"},
        )
        if answers is not None:
            self.kserve.models[source] = ScriptedModel(answers=right | answers, system=None, video=VIDEO)
        uris = (trained.write(self.storage), evaluated.write(self.storage), self.data)
        return register_model(self.context.to_json(), self.section.to_json(), *uris)

    def deploy(self, registered: str, section: DeploymentConfig | None = None) -> Manifest:
        evaluation = Manifest.read(self.storage, registered).inputs["evaluation"]
        run = (self.context.to_json(), (section or self.section).to_json(), registered, evaluation, self.data)
        return Manifest.read(self.storage, deploy_model(*run))

    def service(self) -> Object:
        found = self.cluster.get(INFERENCE_SERVICE, "vthink")
        assert found is not None
        return found

    @property
    def champion(self) -> int | None:
        found = champion(self.context.tracking)
        return None if found is None else found.version

    def wrong(self, share: float) -> dict[str, str]:
        """Answers that are wrong for this share of the replayed items."""
        count = round(share * len(self.samples))
        return {s.question: "<answer>nothing of the kind</answer>" for s in self.samples[:count]}


def write_model(
    storage: Storage, source: str, folder: Path, video: VideoConfig = VIDEO, prompt: str = "compact/1"
) -> None:
    folder.mkdir(parents=True)
    card = {"prompt": prompt, "video": video.model_dump(mode="json"), "lineage": {}}
    (folder / "vthink.json").write_text(json.dumps(card))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    storage.upload_dir(folder, source)


@pytest.fixture
def before(
    cluster: Cluster, hand: Hand, storage: Storage, tracking: TrackingConfig, small_world: str, s3: StorageConfig,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Before]:  # fmt: skip
    monkeypatch.setenv("VTHINK_API_KEY", KEY)
    gateway = Gateway()
    section = DeploymentConfig.load(
        {
            "target": "kserve",
            "smoke_items": 4,
            "start_timeout_s": 60,
            "server": {"max_new_tokens": 64},
            "kserve": {
                "model_format": "vthink", "runtime": "vthink-server", "gpus": 0, "canary_s": 0.2,
                "url": gateway.url + "/{service}",
            },
        }
    )  # fmt: skip
    launch = LaunchConfig.load({"pool": {"deploy": "gpu"}, "cluster": {"namespace": cluster.namespace}})
    context = RunContext(
        run_id="test-run", work_dir=str(tmp_path / "work"), storage=storage.config, tracking=tracking, launch=launch
    )
    opened = PreparedSet.open(Storage(s3), small_world, tmp_path / "cache")
    # One question each, as the model that knows the answers by heart tells items apart by them.
    samples = list(
        {s.question: s for s in opened.split("test").samples if s.problem_type == "multiple_choice"}.values()
    )
    kserve = KServeController(hand, gateway, {}, KEY)
    yield Before(context, storage, section, small_world, samples[:6], cluster, hand, kserve, gateway)
    kserve.close()
    gateway.close()


# --- into service -------------------------------------------------------------------------------------------


def test_first_and_second_version_go_into_service_one_after_the_other(before: Before, tmp_path: Path) -> None:
    first = before.deploy(before.model(1, {}, tmp_path))
    assert before.champion == first.details["version"] == 1
    assert first.metrics == {"deployment/agreement": 1.0, "deployment/identical": 1.0}
    assert before.service()["spec"]["predictor"]["name"] == "v1"
    second = before.deploy(before.model(2, {}, tmp_path))
    found = before.service()
    assert found["spec"]["predictor"]["name"] == "v2"
    assert "canary" not in found["spec"]
    assert before.champion == 2
    assert second.details["replaced"] == 1
    assert second.details["smoke"]["stable"]["name"] == "v1"
    assert second.details["question"]["answer"]
    assert before.kserve.traffic == [{"v1": 100}, {"v1": 100, "v2": 0}, {"v1": 90, "v2": 10}, {"v2": 100}]
    uri = found["spec"]["predictor"]["model"]["storageUri"]
    assert uri.endswith("trained-2/model/")
    assert validation.validate(found | {"status": {}}) == []
    # Both were asked the same items: the candidate, then the model in service beside it.
    assert {"vthink-v1-predictor", "vthink-v2-predictor"} == set(before.gateway.asked)
    again = before.deploy(Manifest.read(before.storage, second.inputs["registered"]).manifest_uri)
    assert again.created == second.created  # finished work is reused


def test_three_versions_and_the_first_again_though_kserve_never_observes_a_generation(
    before: Before, tmp_path: Path
) -> None:
    """What is in service is told by ``canaryStatuses``; ``observedGeneration`` is the Deployment's."""
    registered = [before.model(number, {}, tmp_path) for number in (1, 2, 3)]
    for number, manifest in enumerate(registered, 1):
        assert before.deploy(manifest).details["version"] == number
    service = before.service()
    assert service["status"]["observedGeneration"] < service["metadata"]["generation"]
    assert before.kserve.traffic[-1] == {"v3": 100}
    assert service_lines(service) == ["in service: vthink/3, 100 % of the traffic, 1 replica(s), ready"]
    redo = before.section.model_copy(update={"smoke_items": 3})  # a deployment of its own
    before.deploy(registered[0], redo)
    assert before.champion == 1
    assert before.service()["spec"]["predictor"]["name"] == "v1"
    splits = [{"v3": 100}, {"v3": 100, "v1": 0}, {"v3": 90, "v1": 10}, {"v1": 100}]
    assert before.kserve.traffic[-4:] == splits


def test_a_protocol_that_the_runtime_does_not_list_is_said_at_once(before: Before, tmp_path: Path) -> None:
    """KServe writes protocol v2 into a model of format vLLM."""
    vllm = {"kserve": before.section.kserve.model_copy(update={"model_format": "vLLM", "runtime": "vthink-vllm"})}
    section = before.section.model_copy(update=vllm)
    registered = before.model(1, {}, tmp_path)
    runtime = before.kserve.runtimes["vthink-vllm"]
    before.kserve.runtimes["vthink-vllm"] = {**runtime, "protocolVersions": ["v1"]}
    started = time.monotonic()
    with pytest.raises(UserError, match="Specified runtime does not support specified protocol version"):
        before.deploy(registered, section)
    assert time.monotonic() - started < section.start_timeout_s / 2
    before.kserve.runtimes["vthink-vllm"] = runtime  # the control: with that of k8s/team a server starts and is asked
    before.deploy(registered, section)
    assert before.champion == 1


def test_a_candidate_of_which_no_pod_can_be_made_is_said_at_once(before: Before, tmp_path: Path) -> None:
    """KServe's status has nothing of it; an event has."""
    before.deploy(before.model(1, {}, tmp_path))
    wrong = {"kserve": before.section.kserve.model_copy(update={"runtime": "vthink-vllm"})}
    with pytest.raises(UserError, match=r"candidate v2 is not ready: .*does not support specified framework"):
        before.deploy(before.model(2, {}, tmp_path), before.section.model_copy(update=wrong))
    assert before.champion == 1


def test_a_model_that_was_put_into_service_without_a_name_is_replaced(before: Before, tmp_path: Path) -> None:
    registered = [before.model(number, {}, tmp_path) for number in (1, 2)]
    before.deploy(registered[0])

    def unname(service: Object) -> Object:
        del service["spec"]["predictor"]["name"]
        service["spec"]["predictor"]["model"]["storageUri"] += "./"  # KServe lets a name change only with the model
        return service

    before.kserve.models |= {uri + "./": model for uri, model in before.kserve.models.items()}
    before.hand.cluster.update(INFERENCE_SERVICE, "vthink", unname)
    before.deploy(registered[1])
    assert before.kserve.traffic[-2:] == [{"": 90, "v2": 10}, {"v2": 100}]


SLOW = pytest.mark.slow


def bad_says_other_things(before: Before, folder: Path) -> str:
    return before.model(2, before.wrong(1.0), folder)


def bad_cannot_be_loaded(before: Before, folder: Path) -> str:
    before.kserve.broken.add("v2")
    return before.model(2, {}, folder)


def bad_never_starts(before: Before, folder: Path) -> str:
    return before.model(2, None, folder)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bad_says_other_things, "held-out items got the answer that evaluation saw"),
        (
            bad_cannot_be_loaded,
            "the candidate v2 is not ready: kserve-container ends again and again: CUDA out of memory",
        ),
        pytest.param(bad_never_starts, "the candidate v2 is not ready", marks=SLOW),
    ],
)
def test_a_bad_candidate_leaves_predictor_and_champion_as_they_were(
    before: Before, tmp_path: Path, make: Callable[[Before, Path], str], words: str
) -> None:
    before.deploy(before.model(1, {}, tmp_path))
    was = before.service()
    patience_s = 6.0 if make is bad_never_starts else before.section.start_timeout_s
    with pytest.raises(UserError) as caught:
        before.deploy(make(before, tmp_path), before.section.model_copy(update={"start_timeout_s": patience_s}))
    assert words in str(caught.value)
    assert "in service stays version 1" in str(caught.value)
    assert "\n" not in str(caught.value)
    now = before.service()
    assert now["spec"] == was["spec"]
    assert now["metadata"]["annotations"] == was["metadata"]["annotations"]
    assert before.champion == 1
    assert all(split.get("v2", 0) == 0 for split in before.kserve.traffic)  # nobody was sent to it


@SLOW
def test_a_candidate_that_answers_fewer_items_rightly_is_not_promoted(before: Before, tmp_path: Path) -> None:
    lenient = before.section.model_copy(update={"smoke_min_agreement": 0.3})
    before.deploy(before.model(1, {}, tmp_path), lenient)
    worse = before.model(2, before.wrong(0.5), tmp_path)
    with pytest.raises(UserError, match=r"right answers to 4 replayed items: candidate \d+%, in service 100%"):
        before.deploy(worse, lenient)
    assert before.champion == 1
    # The control: who allows the loss gets it.
    allowed = lenient.model_copy(update={"kserve": lenient.kserve.model_copy(update={"max_loss": 1.0})})
    before.deploy(worse, allowed)
    assert before.champion == 2


def test_a_first_version_that_fails_is_deleted(before: Before, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in service stays nothing"):
        before.deploy(before.model(1, before.wrong(1.0), tmp_path))
    assert before.cluster.get(INFERENCE_SERVICE, "vthink") is None
    assert before.champion is None


@SLOW
def test_a_version_that_fails_at_the_last_step_gives_its_place_back(before: Before, tmp_path: Path) -> None:
    before.deploy(before.model(1, {}, tmp_path))
    was = before.service()
    registered = before.model(2, {}, tmp_path)
    reconcile = before.kserve._reconcile

    def fails_alone(found: Object) -> None:
        if found["spec"]["predictor"]["name"] == "v2":
            before.kserve.broken.add("v2")
        reconcile(found)

    before.kserve._reconcile = fails_alone  # type: ignore[method-assign]
    with pytest.raises(UserError, match="version 2 in service is not ready: CUDA out of memory"):
        before.deploy(registered)
    assert before.service()["spec"] == was["spec"]
    assert before.champion == 1


def test_without_its_key_the_endpoint_answers_nobody(
    before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VTHINK_API_KEY", "wrong")
    with pytest.raises(UserError, match="HTTP 401"):
        before.deploy(before.model(1, {}, tmp_path))


@SLOW
def test_a_deployer_killed_between_traffic_and_alias_finishes_when_run_again(before: Before, tmp_path: Path) -> None:
    before.deploy(before.model(1, {}, tmp_path))
    registered = before.model(2, {}, tmp_path)

    def promote(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelRegistry, "promote", promote)
        with pytest.raises(KeyboardInterrupt):
            before.deploy(registered)
    assert before.service()["spec"]["predictor"]["name"] == "v2"
    assert before.champion == 1
    before.deploy(registered)
    assert before.champion == 2
    assert before.kserve.traffic[-1] == {"v2": 100}
    assert sum(split == {"v2": 100} for split in before.kserve.traffic) == 1  # not rolled out twice


@SLOW
def test_a_conflict_and_a_busy_api_cost_nothing(before: Before, tmp_path: Path, trouble: ApiServer) -> None:
    before.deploy(before.model(1, {}, tmp_path))
    trouble.fail(409, times=1, method="PUT", path="inferenceservices/vthink?")
    trouble.fail(429, times=2, method="GET", path="inferenceservices", retry_after_s=0)
    before.deploy(before.model(2, {}, tmp_path))
    assert before.champion == 2


# --- the command line ---------------------------------------------------------------------------------------


def written_config(before: Before, folder: Path) -> Path:
    config = {
        "name": "team",
        "deployment": before.section.model_dump(mode="json"),
        "launch": before.context.launch.model_dump(mode="json"),
        "storage": before.storage.config.model_dump(mode="json"),
        "tracking": before.context.tracking.model_dump(mode="json"),
    }
    (folder / "team.yaml").write_text(yaml.safe_dump(config))
    return folder / "team.yaml"


def vthink(before: Before, folder: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, [*arguments, "--config", str(written_config(before, folder))])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@SLOW
def test_deploy_hold_promote_and_rollback_by_hand(before: Before, tmp_path: Path) -> None:
    before.model(1, {}, tmp_path)
    assert "version 1 is in service (champion)" in vthink(before, tmp_path, "deploy")
    before.model(2, {}, tmp_path)
    held = vthink(before, tmp_path, "deploy", "candidate", "--hold")
    assert "version 2 waits beside the model in service" in held
    assert before.champion == 1
    assert before.kserve.traffic[-1] == {"v1": 90, "v2": 10}
    lines = vthink(before, tmp_path, "status").splitlines()
    assert lines[0].startswith("champion: vthink/1, s3://")
    assert lines[1:] == [
        "in service: vthink/1, 90 % of the traffic, 1 replica(s), ready",
        "candidate: vthink/2, 10 % of the traffic, 1 replica(s), ready",
    ]
    assert "version 2 is in service (champion)" in vthink(before, tmp_path, "promote")
    assert before.champion == 2
    command = [sys.executable, "-m", "vthink.pipelines.cli.main", "promote", "--config", "team.yaml"]
    nothing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert nothing.returncode == 1
    expected = "vthink: the InferenceService vthink has no candidate; begin with `vthink deploy --hold`"
    assert nothing.stderr.strip() == expected
    assert "version 1 is in service (champion)" in vthink(before, tmp_path, "rollback")
    assert before.champion == 1
    assert before.service()["spec"]["predictor"]["name"] == "v1"


@SLOW
def test_rollback_takes_a_waiting_candidate_away(before: Before, tmp_path: Path) -> None:
    before.deploy(before.model(1, {}, tmp_path))
    was = before.service()
    before.model(2, {}, tmp_path)
    vthink(before, tmp_path, "deploy", "2", "--hold")
    assert "took the candidate away" in vthink(before, tmp_path, "rollback")
    assert before.service()["spec"] == was["spec"]
    assert before.champion == 1


# --- the object ---------------------------------------------------------------------------------------------

TRAINED = TrainedModel(
    "video_r1/1", VideoConfig(num_frames=None, fps=2.0, max_frames=16, max_pixels=100352), "qwen2_5_vl", CHAT_TEMPLATE
)
VERSION = RegisteredVersion(
    name="vthink", version=7, source="s3://vthink/models/7", aliases=(), tags={"vthink.fingerprint": "abc"}
)
SETTINGS: dict[str, Object] = {
    "one": {},
    "scaled": {"kserve": {"min_replicas": 1, "max_replicas": 4}},
    "to zero": {"kserve": {"min_replicas": 0, "max_replicas": 4}},
    "two GPUs, open": {"kserve": {"gpus": 2, "api_key_secret": None}},
    "our server": {"kserve": {"model_format": "vthink", "runtime": "vthink-server", "gpus": 0}},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_object_is_valid_to_the_letter_also_with_a_canary(crds: Path, case: str) -> None:
    section = DeploymentConfig.load(SETTINGS[case])
    launch = LaunchConfig.load({"pool": {"deploy": "gpu"}})
    body = inference_service(VERSION, TRAINED, section, launch, "team-a")
    assert validation.validate(body) == []
    candidate = RegisteredVersion(name="vthink", version=8, source="s3://vthink/models/8/", aliases=(), tags={})
    canary = {
        "trafficPercent": 0,
        "predictor": predictor(candidate, TRAINED, section, launch, canary=True),
    }
    assert validation.validate({**body, "spec": {**body["spec"], "canary": [canary]}}) == []
    assert body["spec"]["predictor"]["nodeSelector"] == {"vthink.dev/pool": "gpu"}
    # The controls.
    del canary["predictor"]["model"]["modelFormat"]
    assert validation.validate({**body, "spec": {**body["spec"], "canary": [canary]}})
    body["spec"]["predictor"]["model"]["storageUri"] = "s3://vthink/models/7"
    assert validation.validate(body)


def test_what_training_saw_becomes_arguments(crds: Path) -> None:
    section = DeploymentConfig()
    arguments = vllm_arguments(TRAINED, section)
    assert '--media-io-kwargs={"video":{"fps":2,"num_frames":16,"video_backend":"opencv"}}' in arguments
    assert '--mm-processor-kwargs={"max_pixels":100352,"min_pixels":3136}' in arguments
    assert arguments[-2:] == ["--allowed-media-domains", "none.invalid"]
    fixed = TrainedModel("compact/1", VIDEO, "qwen3_vl", CHAT_TEMPLATE)
    arguments = vllm_arguments(fixed, section)
    assert '--media-io-kwargs={"video":{"num_frames":8,"video_backend":"opencv"}}' in arguments
    assert '--mm-processor-kwargs={"size":{"longest_edge":25088,"shortest_edge":3136}}' in arguments
    server = {"allow_http_media": True, "allowed_media_domains": ["media.example.org"]}
    arguments = vllm_arguments(TRAINED, DeploymentConfig.load({"server": server}))
    assert arguments[-2:] == ["--allowed-media-domains", "media.example.org"]


@pytest.mark.parametrize(
    ("evaluated", "settings", "dtype"),
    [
        ("float32", {}, "float32"),
        ("float32", {"server": {"dtype": "bfloat16"}}, "bfloat16"),
        ("", {}, "bfloat16"),  # of a version from before it was recorded: what a GPU's `auto` is
        ("", {"kserve": {"gpus": 0}}, "float32"),
    ],
)
def test_vllm_computes_in_the_type_of_evaluation(
    storage: Storage, tmp_path: Path, evaluated: str, settings: dict[str, Object], dtype: str
) -> None:
    source = join(storage.config.root_uri, "m/")
    write_model(storage, source, tmp_path / "m")
    version = VERSION.model_copy(update={"source": source, "tags": {"vthink.dtype": evaluated}})
    arguments = vllm_arguments(TrainedModel.read(storage, version), DeploymentConfig.load(settings))
    assert [a for a in arguments if a.startswith("--dtype")] == [f"--dtype={dtype}"]


def test_replicas_of_a_canary_are_fixed_and_scaling_is_by_requests_in_work(crds: Path) -> None:
    section = DeploymentConfig.load(SETTINGS["scaled"])
    body = inference_service(VERSION, TRAINED, section, LaunchConfig(), "team-a")
    assert body["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    (metric,) = body["spec"]["predictor"]["autoScaling"]["metrics"]
    assert 'namespace="team-a"' in metric["external"]["metric"]["query"]
    canary = predictor(VERSION, TRAINED, section, LaunchConfig(), canary=True)
    assert "autoScaling" not in canary
    assert canary["minReplicas"] == 1
    assert "maxReplicas" not in canary


@pytest.fixture
def example(storage: Storage, s3: StorageConfig, tracking: TrackingConfig, tmp_path: Path) -> list[str]:
    """Version 1 of the registry, a model as the preset trains it; the options that name its stores."""
    own = Storage(s3.model_copy(update={"bucket": "vthink", "prefix": ""}))
    own.ensure_bucket()
    source = "s3://vthink/models/vthink/1/"
    config = load_config("video_r1_7b")
    write_model(own, source, tmp_path / "model", config.video, config.model.prompt)
    assert ModelRegistry(tracking).register(source, None, {}).version == 1
    stores = {"storage.endpoint_url": s3.endpoint_url, "tracking.uri": tracking.uri}
    return [f"{key}={value}" for key, value in stores.items()]


MANIFEST = Path(__file__).parents[2] / "k8s" / "model" / "inferenceservice.yaml"
DRY_RUN = ["deploy", "1", "--dry-run", "-o", "yaml", "--preset", "video_r1_7b", "--set", "launch.pool.deploy=serve"]


def test_the_manifest_is_what_a_dry_run_prints(
    example: list[str], crds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KUBECONFIG", "VTHINK_API_KEY"):
        monkeypatch.delenv(name, raising=False)  # neither a cluster nor a key is needed
    options = [part for setting in example for part in ("--set", setting)]
    command = [sys.executable, "-m", "vthink.pipelines.cli.main", *DRY_RUN, *options]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if os.environ.get("VTHINK_WRITE_MANIFEST"):
        head = "".join(line for line in MANIFEST.read_text().splitlines(True) if line.startswith("#"))
        MANIFEST.write_text(head + done.stdout)
    printed = yaml.safe_load(done.stdout)
    assert printed == yaml.safe_load(MANIFEST.read_text())
    assert validation.validate(printed) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"vthink.json": b"{}"}, "vthink.json: 'prompt'"),
        ({"vthink.json": b"nonsense"}, "cannot be served"),
        ({"config.json": None}, "cannot be served"),
        ({"vthink.json": b'{"prompt": "no/1", "video": {}}'}, "unknown prompt template"),
    ],
)
def test_a_damaged_model_folder_is_one_line(
    storage: Storage, tmp_path: Path, damage: dict[str, bytes | None], words: str
) -> None:
    source = join(storage.config.root_uri, "m/")
    write_model(storage, source, tmp_path / "m")
    version = VERSION.model_copy(update={"source": source})
    assert TrainedModel.read(storage, version).video == VIDEO
    for name, data in damage.items():
        if data is None:
            storage.delete(source + name)
        else:
            storage.write_bytes(source + name, data)
    with pytest.raises(UserError, match=words) as caught:
        TrainedModel.read(storage, version)
    assert "\n" not in str(caught.value)
