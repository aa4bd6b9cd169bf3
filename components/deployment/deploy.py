"""The stage `deploy`: start the candidate's server, see that it says what evaluation saw, then make it the champion.

The smoke test asks held-out items again through the served endpoint, with the original files, and compares with the
answers that evaluation recorded. The champion moves only when they agree; otherwise it stays, and the error says why.
Everything here goes through HTTP, so this process needs no torch. On a cluster (``target: kserve``) the candidate is
rolled out beside the model in service (`rollout`) instead of being served here.
"""

from __future__ import annotations

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

import httpx

from ... import __version__
from ..common.chat_endpoint.endpoint import EndpointError
from ..common.context import RunContext
from ..common.errors import UserError
from ..common.launch.kubernetes.client import Cluster
from ..common.launch.process import LaunchError, end_with_owner, free_port, limit_threads, spawn, tail, wait_until_ready
from ..common.provenance import git_commit
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, join, stage_prefix
from ..common.storage.s3 import Storage
from ..common.tracking.run import Tracker
from .config import DeploymentConfig
from .registry import CHAMPION, ModelRegistry, RegisteredVersion
from .rollout.rollout import Rollout, SmokeTestFailedError
from .rollout.trained_model import TrainedModel
from .smoke_test import SmokeTest, SmokeTestResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a version."""

    smoke: SmokeTestResult
    """The champion may move only where it passed."""
    in_service: bool = False
    """Whether the version has all of the traffic; on this machine: whether it passed."""
    question: dict[str, Any] | None = None
    """One question with its structured answer, for people to see."""

    def to_json(self) -> dict[str, Any]:
        """The record that is kept."""
        return self.smoke.to_json() | {"promoted": self.in_service}


def deploy_model(run: str, config: str, registered: str, evaluation: str, data: str) -> str:
    """Smoke-test the registered candidate and promote it; the arguments are those of `component.deploy`.

    Returns:
        URI of the manifest; ``details`` holds ``name``, ``version``, ``alias``, ``replaced`` (the version in service
        before), ``smoke`` (what was compared) and ``question`` (one question with its structured answer).

    Raises:
        UserError: the server did not start or did not agree with evaluation; the champion stays.
    """
    end_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    storage = Storage(context.storage)
    candidate, evaluated, prepared = (Manifest.read(storage, uri) for uri in (registered, evaluation, data))
    key = fingerprint(
        "deploy",
        section,
        [candidate.fingerprint, evaluated.fingerprint, prepared.fingerprint],
        candidate.details,
        context.redo.get("deploy", 0),
        __version__,
    )
    prefix = stage_prefix(context, "deploy", key)
    registry = ModelRegistry(context.tracking)
    version = registry.find(str(candidate.details["version"]))
    before = registry.alias(CHAMPION)
    earlier = Manifest.find(storage, prefix)
    if earlier is not None and before is not None and before.version == version.version:
        log.info("deploy reused: %s", prefix)
        return earlier.manifest_uri
    inputs = {"registered": registered, "evaluation": evaluation, "data": data}
    with Tracker.start(context, "deploy", key, section.model_dump(mode="json"), inputs) as tracker:
        outcome = _deploy(context, section, version, storage, evaluated, data)
        record = outcome.to_json()
        storage.write_json(join(prefix, "smoke.json"), record)
        tracker.log_metrics(outcome.smoke.metrics)
        tracker.set_tags({"vthink.model_version": str(version.version), "vthink.smoke_test": outcome.smoke.why})
        _require_passed(registry, version, outcome, f"; details: {join(prefix, 'smoke.json')}")
        registry.tag(version.version, "vthink.deploy_uri", join(prefix, "manifest.json"))
        registry.promote(version.version, outcome.smoke)
        manifest = Manifest(
            stage="deploy",
            fingerprint=key,
            uri=prefix,
            inputs=inputs,
            counts={"smoke_items": len(outcome.smoke.items)},
            metrics=outcome.smoke.metrics,
            files={"model": version.source, "smoke": join(prefix, "smoke.json")},
            config=section.model_dump(mode="json"),
            details={
                "name": registry.name,
                "version": version.version,
                "alias": CHAMPION,
                "replaced": before.version if before is not None else None,
                "source": version.source,
                "smoke": {name: value for name, value in record.items() if name != "items"},
                "question": outcome.question,
            },
            mlflow_run_id=tracker.run_id,
            seconds=round(time.monotonic() - started, 3),
            git_commit=git_commit(),
        )
        return manifest.write(storage)


def deploy_registered(
    context: RunContext, section: DeploymentConfig, version: RegisteredVersion, storage: Storage, hold: bool = False
) -> Outcome:
    """Deploy a version again, outside of the pipeline: what it is compared with is in its tags.

    Args:
        hold: on a cluster, stop with the candidate beside the model in service.

    Raises:
        UserError: it did not go into service; the champion is what it was.
    """
    missing = [tag for tag in ("vthink.evaluation_uri", "vthink.data_uri") if not version.tags.get(tag)]
    if missing:
        raise UserError(
            f"version {version.version} of '{version.name}' has no tag {missing[0]}: it was not registered by vthink, "
            "so there is nothing to compare its answers with"
        )
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
        raise UserError(
            f"version {version.version} of '{version.name}' is not in service ({outcome.smoke.why}); "
            f"in service stays {in_service}{details}"
        )


def _deploy(
    context: RunContext,
    section: DeploymentConfig,
    version: RegisteredVersion,
    storage: Storage,
    evaluated: Manifest,
    data: str,
    hold: bool = False,
) -> Outcome:
    """Test a version, and on a cluster bring it into service. What goes wrong is in the outcome."""
    with contextlib.ExitStack() as stack:
        scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
        test = SmokeTest.prepare(storage, section, evaluated, data, scratch)
        skipped = tuple(test.skipped)
        if not test.replays:
            reason = f"; the first: {skipped[0]}" if skipped else ""
            why = f"no held-out item could be asked again{reason}"
            return Outcome(smoke=SmokeTestResult(passed=False, why=why, skipped=skipped))
        try:
            if section.target == "local":
                with served(version.source, section, context, scratch) as url:
                    smoke = test.run(url)
                    question = test.ask_one(url) if smoke.passed else None
                    return Outcome(smoke=smoke, in_service=smoke.passed, question=question)
            model = TrainedModel.read(storage, version.source)
            cluster = Cluster.connect(context.launch.cluster.namespace)
            report = functools.partial(log.warning, "deploy: %s")
            rollout = Rollout(cluster, section, context.launch, version, model, report)
            smoke, in_service = rollout.bring_into_service(test.run, hold)
            question = None
            with contextlib.suppress(EndpointError):  # it is in service already; this is only for show
                question = test.ask_one(rollout.url(rollout.predictor))
            return Outcome(smoke=smoke, in_service=in_service, question=question)
        except SmokeTestFailedError as error:
            return Outcome(smoke=error.result)
        except (UserError, LaunchError) as error:
            return Outcome(smoke=SmokeTestResult(passed=False, why=str(error), skipped=skipped))


@contextlib.contextmanager
def served(source: str, section: DeploymentConfig, context: RunContext, scratch: Path) -> Iterator[str]:
    """The candidate's server on a free port of this machine, ready; yields its URL and stops it at the end.

    Raises:
        LaunchError: it did not start, with the last line of its log.
    """
    limit_threads(context.launch)
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
        except EndpointError as error:
            if process.poll() is not None:
                last = (tail(server_log) or ["nothing in its log"])[-1]
                raise LaunchError(
                    f"the model server ended during the smoke test: {last} (log: {server_log})"
                ) from error
            raise
