"""The stage `deploy`: start the candidate's server, see that it says what evaluation saw, then make it the champion.

The smoke test asks held-out items again through the served endpoint, with the original files, and compares with the
answers that evaluation recorded. The champion moves only when they agree; otherwise it stays, and the error says why.
Everything here goes through HTTP, so this process needs no torch. On a cluster (``target: kserve``) the candidate is
rolled out beside the model in service (`rollout`) instead of being served here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from ... import __version__
from ..common.context import RunContext
from ..common.launch.kubernetes.client import Cluster
from ..common.launch.process import LaunchError, die_with_owner, free_port, spawn, tail, wait_until_ready
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from .client import AskError
from .config import DeploymentConfig
from .registry import CHAMPION, ModelVersion, Registry
from .rollout import inference_service, rollout, trained_model
from .smoke_test import DeploymentError, SmokeTest

log = logging.getLogger(__name__)


def run(run: str, config: str, registered: str, evaluation: str, data: str) -> str:
    """Smoke-test the registered candidate and promote it.

    Args:
        run: `RunContext` as JSON.
        config: `DeploymentConfig` as JSON.
        registered: manifest URI of the stage `register`.
        evaluation: manifest URI of the evaluation.
        data: manifest URI of the prepared data.

    Returns:
        URI of the manifest; ``details`` holds ``name``, ``version``, ``alias``, ``replaced`` (the version in service
        before), ``smoke`` (what was compared) and ``question`` (one question with its structured answer).

    Raises:
        DeploymentError: the server did not start or did not agree with evaluation; the champion stays.
    """
    die_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    storage = Storage(context.storage)
    candidate, evaluated, prepared = (Manifest.read(storage, uri) for uri in (registered, evaluation, data))
    version, source = int(candidate.details["version"]), candidate.files["model"]
    key = fingerprint(
        "deploy",
        section,
        [candidate.fingerprint, evaluated.fingerprint, prepared.fingerprint],
        candidate.details,
        context.redo.get("deploy", 0),
        __version__,
    )
    prefix = stage_prefix(context, "deploy", key)
    registry = Registry(context.tracking)
    before = registry.alias(CHAMPION)
    found = Manifest.find(storage, prefix)
    if found is not None and before is not None and before.version == version:
        log.info("deploy reused: %s", prefix)
        return found.manifest_uri
    in_service = f"version {before.version}" if before is not None else "nothing"
    inputs = {"registered": registered, "evaluation": evaluation, "data": data}
    with Tracker.start(context, "deploy", key, section.model_dump(mode="json"), inputs) as tracker:
        with contextlib.ExitStack() as stack:
            scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
            test = SmokeTest.prepare(storage, section, evaluated, data, scratch)
            smoke = deploy_version(context, section, registry.find(str(version)), storage, test, scratch)
            question = smoke.pop("question", None)
        storage.write_json(join(prefix, "smoke.json"), smoke)
        figures = {f"deployment/{name}": smoke[name] for name in ("agreement", "identical") if name in smoke}
        tracker.log_metrics(figures)
        tracker.set_tags({"vthink.model_version": str(version), "vthink.smoke_test": smoke["why"]})
        registry.tag(version, "vthink.smoke_test", smoke["why"][:500])
        if not smoke["passed"]:
            raise DeploymentError(
                f"version {version} of '{registry.name}' failed its smoke test and is not in service ({smoke['why']}); "
                f"in service stays {in_service}; details: {join(prefix, 'smoke.json')}"
            )
        registry.tag(version, "vthink.deploy_uri", join(prefix, "manifest.json"))
        registry.promote(version, smoke)
        manifest = Manifest(
            stage="deploy",
            fingerprint=key,
            uri=prefix,
            inputs=inputs,
            counts={"smoke_items": smoke["asked"]},
            metrics=figures,
            files={"model": source, "smoke": join(prefix, "smoke.json")},
            config=section.model_dump(mode="json"),
            details={
                "name": registry.name,
                "version": version,
                "alias": CHAMPION,
                "replaced": before.version if before is not None else None,
                "source": source,
                "smoke": {name: value for name, value in smoke.items() if name != "items"},
                "question": question,
            },
            mlflow_run_id=tracker.run_id,
            seconds=round(time.monotonic() - started, 3),
            git_commit=git_commit(),
        )
        return manifest.write(storage)


def deploy_version(
    context: RunContext,
    section: DeploymentConfig,
    version: ModelVersion,
    storage: Storage,
    test: SmokeTest,
    scratch: Path,
    hold: bool = False,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Test a version, and on a cluster bring it into service.

    Args:
        hold: on a cluster, stop with the candidate beside the model in service.
        cluster: None: the one at hand, where ``section.target`` asks for one.

    Returns:
        The record of the smoke test (see `smoke_test`); ``passed`` says whether the champion may move, ``promoted``
        (on a cluster) whether the version has all of the traffic, ``question`` is one structured answer.
    """
    smoke: dict[str, Any] = {"passed": False, "skipped": test.skipped}
    if not test.replays:
        reason = f"; the first: {test.skipped[0]}" if test.skipped else ""
        return smoke | {"why": f"no held-out item could be asked again{reason}"}
    try:
        if section.target == "local":
            with served(version.source, section, context, scratch) as url:
                smoke |= test(url)
                smoke["question"] = test.ask_one(url) if smoke["passed"] else None
            return smoke
        model = trained_model.TrainedModel.read(storage, version.source)
        cluster = cluster or Cluster.connect(context.launch.cluster.namespace)
        way = rollout.Rollout(
            cluster, section, context.launch, version, model, lambda line: log.warning("deploy: %s", line)
        )
        smoke |= way.run(test, hold)
        with contextlib.suppress(AskError):  # it is in service already; this is only for show
            smoke["question"] = test.ask_one(way.url(inference_service.variant(version.version)))
        return smoke
    except rollout.SmokeTestError as error:
        return smoke | error.record
    except (LaunchError, AskError, trained_model.RolloutError) as error:
        return smoke | {"passed": False, "why": str(error)}


def deploy_registered(
    context: RunContext, section: DeploymentConfig, version: ModelVersion, storage: Storage, hold: bool = False
) -> dict[str, Any]:
    """Deploy a version again, outside of the pipeline: what it is compared with is in its tags.

    Returns:
        The record of the smoke test, see `deploy_version`.

    Raises:
        DeploymentError: it did not go into service; the champion is what it was.
    """
    missing = [tag for tag in ("vthink.evaluation_uri", "vthink.data_uri") if not version.tags.get(tag)]
    if missing:
        raise DeploymentError(
            f"version {version.version} of '{version.name}' has no tag {missing[0]}: it was not registered by vthink, "
            "so there is nothing to compare its answers with"
        )
    evaluated = Manifest.read(storage, version.tags["vthink.evaluation_uri"])
    registry = Registry(context.tracking)
    with contextlib.ExitStack() as stack:
        scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
        test = SmokeTest.prepare(storage, section, evaluated, version.tags["vthink.data_uri"], scratch)
        smoke = deploy_version(context, section, version, storage, test, scratch, hold)
    registry.tag(version.version, "vthink.smoke_test", smoke["why"][:500])
    if not smoke["passed"]:
        before = registry.alias(CHAMPION)
        in_service = f"version {before.version}" if before is not None else "nothing"
        raise DeploymentError(
            f"version {version.version} of '{version.name}' is not in service ({smoke['why']}); "
            f"in service stays {in_service}"
        )
    if smoke.get("promoted", True):
        registry.promote(version.version, smoke)
    return smoke


@contextlib.contextmanager
def served(source: str, section: DeploymentConfig, context: RunContext, scratch: Path) -> Iterator[str]:
    """The candidate's server on a free port of this machine, ready; yields its URL and stops it at the end.

    Raises:
        LaunchError: it did not start, with the last it said.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = section.server.model_copy(update={"host": "127.0.0.1", "port": port})
    command = [sys.executable, "-m", f"{__package__}.server.serve", "--model", source, "--config", server.to_json()]
    command += ["--storage", context.storage.to_json(), "--cache-dir", str(scratch)]
    server_log = scratch / "logs" / f"server-{port}.log"
    with spawn(command, log=server_log) as process, httpx.Client(trust_env=False, timeout=5) as client:

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return client.get(f"{url}/v2/health/ready").status_code == 200
            return False

        wait_until_ready(process, "the model server", ready, section.start_timeout_s)
        try:
            yield url
        except AskError as error:
            if process.poll() is not None:
                last = (tail(server_log) or ["nothing in its log"])[-1]
                raise LaunchError(
                    f"the model server ended during the smoke test: {last} (log: {server_log})"
                ) from error
            raise
