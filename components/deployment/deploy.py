"""The stage `deploy`: start the candidate's server, see that it says what evaluation saw, then make it the champion.

The champion moves only when the answers to held-out items agree; otherwise it stays, and the error says why. All goes
through HTTP, so this process needs no torch. On a cluster (``target: kserve``) the candidate is rolled out beside the
model in service (`rollout`) instead of being served here.
"""

import contextlib
import functools
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ..common.chat_endpoint.endpoint import EndpointError
from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.kubernetes.client import Cluster
from ..common.launch.process import LaunchError, end_with_owner, free_port, limit_threads, spawn, tail, wait_until_ready
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from ..common.tracking.server import answers
from .config import DeploymentConfig
from .registry import CHAMPION, ModelRegistry, RegisteredVersion
from .rollout.inference_service import TrainedModel
from .rollout.rollout import Rollout, SmokeTestFailedError
from .smoke_test import SmokeTest, SmokeTestResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a version, and one question with its structured answer, for people to see."""

    smoke: SmokeTestResult
    in_service: bool = False  # whether the version has all of the traffic; on this machine: whether it passed
    question: dict[str, Any] | None = None


def deploy_model(run: str, config: str, registered: str, evaluation: str, data: str) -> str:
    """Smoke-test the registered candidate and promote it; the arguments are those of `component.deploy`.

    Returns the URI of the manifest; its ``details`` hold ``name``, ``version``, ``alias``, ``replaced`` (the version
    in service before), ``smoke`` (what was compared) and ``question`` (one question with its structured answer).
    UserError: the server did not start or did not agree with evaluation; the champion stays."""
    end_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    settings = section.model_dump(mode="json")
    storage = Storage(context.storage)
    candidate, evaluated, prepared = (Manifest.read(storage, uri) for uri in (registered, evaluation, data))
    read = [candidate.fingerprint, evaluated.fingerprint, prepared.fingerprint]
    key = fingerprint("deploy", section, read, candidate.details, context.redo.get("deploy", 0), __version__)
    prefix = stage_prefix(context, "deploy", key)
    registry = ModelRegistry(context.tracking)
    version = registry.find(str(candidate.details["version"]))
    before = registry.alias(CHAMPION)
    earlier = Manifest.find(storage, prefix)
    if earlier is not None and before is not None and before.version == version.version:
        log.info("deploy reused: %s", prefix)
        return earlier.manifest_uri
    inputs = {"registered": registered, "evaluation": evaluation, "data": data}
    with Tracker.start(context, "deploy", key, settings, inputs) as tracker:
        outcome = _deploy(context, section, version, storage, evaluated, data)
        smoke = outcome.smoke.to_json() | {"promoted": outcome.in_service}
        smoke_uri = join(prefix, "smoke.json")
        storage.write_json(smoke_uri, smoke)
        tracker.log_metrics(outcome.smoke.metrics)
        tracker.set_tags({"vthink.model_version": str(version.version), "vthink.smoke_test": outcome.smoke.why})
        _require_passed(registry, version, outcome, f"; details: {smoke_uri}")
        registry.tag(version.version, "vthink.deploy_uri", join(prefix, "manifest.json"))
        registry.promote(version.version, outcome.smoke)
        details = {"name": registry.name, "version": version.version, "alias": CHAMPION, "source": version.source}
        details["replaced"] = before.version if before is not None else None
        details["smoke"] = {name: value for name, value in smoke.items() if name != "items"}
        return Manifest(
            stage="deploy", fingerprint=key, uri=prefix, inputs=inputs, config=settings,
            counts={"smoke_items": len(outcome.smoke.items)}, metrics=outcome.smoke.metrics,
            files={"model": version.source, "smoke": smoke_uri}, details=details | {"question": outcome.question},
            mlflow_run_id=tracker.run_id, seconds=round(time.monotonic() - started, 3),
        ).write(storage)  # fmt: skip


def deploy_registered(
    context: RunContext, section: DeploymentConfig, version: RegisteredVersion, storage: Storage, hold: bool = False
) -> Outcome:
    """Deploy a version again, outside of the pipeline: what it is compared with is in its tags. ``hold``: on a cluster,
    stop with the candidate beside the model in service. UserError: it did not go into service; the champion is what it
    was."""
    for tag in ("vthink.evaluation_uri", "vthink.data_uri"):
        if not version.tags.get(tag):
            why = "it was not registered by vthink, so there is nothing to compare its answers with"
            raise UserError(f"version {version.version} of '{version.name}' has no tag {tag}: {why}")
    evaluated = Manifest.read(storage, version.tags["vthink.evaluation_uri"])
    outcome = _deploy(context, section, version, storage, evaluated, version.tags["vthink.data_uri"], hold)
    registry = ModelRegistry(context.tracking)
    _require_passed(registry, version, outcome)
    if outcome.in_service:
        registry.promote(version.version, outcome.smoke)
    return outcome


def _require_passed(registry: ModelRegistry, version: RegisteredVersion, outcome: Outcome, details: str = "") -> None:
    registry.tag(version.version, "vthink.smoke_test", outcome.smoke.why[:500])
    if not outcome.smoke.passed:
        before = registry.alias(CHAMPION)
        in_service = f"version {before.version}" if before is not None else "nothing"
        why = f"is not in service ({outcome.smoke.why}); in service stays {in_service}{details}"
        raise UserError(f"version {version.version} of '{version.name}' {why}")


def _deploy(
    context: RunContext, section: DeploymentConfig, version: RegisteredVersion, storage: Storage,
    evaluated: Manifest, data: str, hold: bool = False,
) -> Outcome:  # fmt: skip
    """Test a version, and on a cluster bring it into service. What goes wrong is in the outcome."""
    with contextlib.ExitStack() as stack:
        scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
        test = SmokeTest.prepare(storage, section, evaluated, data, scratch)
        failed = functools.partial(SmokeTestResult, passed=False, skipped=tuple(test.skipped))
        if not test.replays:
            reason = f"; the first: {test.skipped[0]}" if test.skipped else ""
            return Outcome(smoke=failed(why=f"no held-out item could be asked again{reason}"))
        try:
            if section.target == "local":
                with _served(version.source, section, context, scratch) as url:
                    smoke = test.run(url)
                    question = test.ask_one(url) if smoke.passed else None
                    return Outcome(smoke=smoke, in_service=smoke.passed, question=question)
            model = TrainedModel.read(storage, version)
            cluster = Cluster.connect(context.launch.cluster.namespace)
            rollout = Rollout(cluster, section, context.launch, version, model)
            smoke, in_service = rollout.bring_into_service(test, hold)
            question = None
            with contextlib.suppress(EndpointError):  # it is in service already; this is only for show
                question = test.ask_one(rollout.url(version.predictor))
            return Outcome(smoke=smoke, in_service=in_service, question=question)
        except SmokeTestFailedError as error:
            return Outcome(smoke=error.result)
        except UserError as error:
            return Outcome(smoke=failed(why=str(error)))


@contextlib.contextmanager
def _served(source: str, section: DeploymentConfig, context: RunContext, scratch: Path) -> Iterator[str]:
    """The candidate's server on a free port of this machine, ready; yields its URL and stops it at the end."""
    limit_threads(context.launch)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = section.server.model_copy(update={"host": "127.0.0.1", "port": port})
    command = [sys.executable, "-m", f"{__package__}.server.serve", "--model", source, "--config", server.to_json()]
    command += ["--storage", context.storage.to_json(), "--cache-dir", str(scratch)]
    server_log = scratch / "logs" / f"server-{port}.log"
    with spawn(command, log=server_log) as process:
        ready = functools.partial(answers, f"{url}/v2/health/ready")
        wait_until_ready(process, "the model server", ready, section.start_timeout_s)
        try:
            yield url
        except EndpointError as error:
            if process.poll() is None:
                raise
            last = (tail(server_log) or ["nothing in its log"])[-1]
            raise LaunchError(f"the model server ended during the smoke test: {last} (log: {server_log})") from error
