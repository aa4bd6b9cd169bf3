"""Kubeflow Pipelines as a team uses it: upload a version of the pipeline, start a run of it, watch, stop, repeat.

Everything goes through ``kfp.Client`` and its v2beta1 API. Two things it leaves open are closed here. A request that
creates something may have arrived although its answer got lost, so it is looked up by its name before it is sent
again: nothing is started twice. And every request has a time limit.

The names by which stages are recognised in a run's ``task_details``, and the page that gives a task's log, were read
in KFP's source (backend/src/apiserver, frontend/server); no KFP server was available to check them against.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ... import __version__
from ...components.common.config import STAGES, Stage
from ...components.common.context import RunContext
from ..config import Config
from ..pipeline import arguments, compile_to, for_cluster
from ..run.watch import StageProgress
from .credentials import credentials
from .errors import SubmitError
from .runs import SubmittedRun, _containing, _context, _named, _pods, cron_expression, ending, stages

T = TypeVar("T")


PIPELINE = "vthink"
"""Name of the pipeline in KFP."""


TIMEOUT_S = (5.0, 60.0)
"""To connect, and to read; KFP's client waits for ever."""


_ATTEMPTS = 4


_PAUSE_S = 1.0


_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What must not reach the terminal of a person who reads a log."""


_ROWS = re.compile(r"\brows ([0-9a-f]{16})\b")


class Pipelines:
    """Kubeflow Pipelines at one address, for one namespace."""

    def __init__(self, host: str, namespace: str, token: str | None = None):
        """Connect.

        Args:
            host: address of the API, as ``kfp.Client`` takes it; of a whole Kubeflow ``https://…/pipeline``.
            namespace: the team's; ignored by a KFP that serves only one.
            token: bearer token; None: see `credentials`.

        Raises:
            SubmitError: it cannot be reached or refuses the token.
        """
        import kfp

        class Client(kfp.Client):
            # The original reads a file in the home folder, and asks an unreachable server for half a minute.
            def _load_context_setting_or_default(self) -> None:
                self._context_setting = {"namespace": namespace}

        warnings.filterwarnings("ignore", "This client only works", FutureWarning)
        self.host, self.namespace = host.rstrip("/"), namespace
        if not self.host.startswith(("http://", "https://")):
            self.host = f"https://{self.host}"
        authority = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        self._client = Client(host=self.host, namespace=namespace, ssl_ca_cert=authority, **credentials(token))
        self._bound_requests()
        self.multi_user = bool(self._ask("reach it", self._client._healthz_api.healthz_service_get_healthz).multi_user)
        """Whether this KFP tells namespaces apart."""

    def _bound_requests(self) -> None:
        """Give every request a time limit, repeat reading ones, and refuse a login page in the place of an answer."""
        import urllib3

        rest = self._client._run_api.api_client.rest_client
        request = rest.request

        def bounded(*args: Any, **kwargs: Any) -> Any:
            kwargs["_request_timeout"] = kwargs.get("_request_timeout") or TIMEOUT_S
            answer = request(*args, **kwargs)
            if "html" in (answer.getheader("Content-Type") or ""):
                raise SubmitError(
                    f"{self.host} answered with a web page: it wants a login (--token), or is not the address of the "
                    "API (often …/pipeline)", 401,
                )  # fmt: skip
            return answer

        rest.request = bounded
        rest.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(
            total=3, backoff_factor=0.3, allowed_methods={"GET"}, status_forcelist={429, 502, 503, 504},
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip

    def _ask(self, what: str, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call KFP's API; what goes wrong becomes one line."""
        import kfp_server_api
        import urllib3

        try:
            return call(*args, **kwargs)
        except kfp_server_api.ApiException as error:
            status = int(error.status or 0)
            said = _message(error)
            if status == 401:
                hint = "give another --token, token file or OIDC client (vthink submit --help)"
                raise SubmitError(f"{self.host} does not know you (401 {said}): {hint}", 401) from error
            if status == 403:
                raise SubmitError(f"you may not {what} in namespace {self.namespace} (403 {said})", 403) from error
            answered = f"{self.host} answered {status or 'nothing'}"
            raise SubmitError(f"cannot {what}: {answered} ({said})", status or None) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            said = str(reason).rpartition(": ")[2][:200]
            raise SubmitError(
                f"cannot reach Kubeflow Pipelines at {self.host} ({said}); is the address right?"
            ) from error

    def _create(self, what: str, create: Callable[[], T], find: Callable[[], T | None]) -> T:
        """Create something under a name of its own, once, although answers may get lost."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._ask(what, create)
            except SubmitError as error:
                # 409: it arrived at an earlier attempt, or somebody else made the same.
                if not (error.passing or error.status == 409) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S * 2**attempt)
                if (found := self._ask(what, find)) is not None:
                    return found
                if error.status == 409:
                    raise
        raise AssertionError("unreachable")

    @property
    def _scope(self) -> dict[str, str]:
        """The namespace, which a single-user KFP refuses to be told."""
        return {"namespace": self.namespace} if self.multi_user else {}

    # --- the pipeline and its versions ------------------------------------------------------------------------

    def upload(self, package: Path) -> tuple[str, str]:
        """Make a compiled pipeline known, once: its version is named by its contents.

        Returns:
            (id of the pipeline, id of the version).
        """
        import kfp_server_api

        api = self._client._pipelines_api

        def pipeline() -> Any:
            try:
                return api.pipeline_service_get_pipeline_by_name(PIPELINE, **self._scope)
            except kfp_server_api.ApiException as error:
                if error.status != 404:
                    raise
                return None

        found = self._ask("look for the pipeline", pipeline)
        if found is None:
            about = kfp_server_api.V2beta1Pipeline(name=PIPELINE, display_name=PIPELINE, **self._scope)
            found = self._create("create the pipeline", lambda: api.pipeline_service_create_pipeline(about), pipeline)
        pipeline_id = str(found.pipeline_id)
        name = f"{__version__}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"

        def version() -> Any:
            listed = api.pipeline_service_list_pipeline_versions(pipeline_id, filter=_named(name), page_size=1)
            return listed.pipeline_versions[0] if listed.pipeline_versions else None

        known = self._ask("look for the pipeline's version", version)
        if known is None:
            send = self._client._upload_api.upload_pipeline_version
            known = self._create(
                "upload the pipeline", lambda: send(str(package), name=name, pipelineid=pipeline_id), version
            )
        return pipeline_id, str(known.pipeline_version_id)

    # --- runs -------------------------------------------------------------------------------------------------

    def start(
        self,
        config: Config,
        restart: Stage | None = None,
        experiment: str | None = None,
        service_account: str | None = None,
        cron: str | None = None,
        rows: str | None = None,
        evaluation_gpus: int = 1,
    ) -> SubmittedRun:
        """Upload the pipeline where KFP does not have it, and start a run of it.

        Args:
            config: the whole configuration, made `for_cluster`; storage and tracking must be reachable from there.
            restart: do this stage and all after it afresh, though finished output is there.
            experiment: KFP experiment; None: the configuration's MLflow experiment.
            service_account: of the run's pods; None: KFP's default.
            cron: start it again and again, at these times (see `cron_expression`).
            rows: fingerprint of the rows (`rows_fingerprint`), kept with the run.
            evaluation_gpus: accelerators of the evaluation task.
        """
        import kfp_server_api

        schedule = cron_expression(cron) if cron else None
        redo = self.redo(config.name)
        if restart:
            redo[restart] = redo.get(restart, 0) + 1
        name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        config = for_cluster(config)
        context = RunContext(
            run_id=name,
            redo={str(stage): count for stage, count in redo.items()},
            storage=config.storage,
            tracking=config.tracking,
            launch=config.launch,
        )
        with tempfile.TemporaryDirectory() as folder:
            pipeline_id, version_id = self.upload(compile_to(Path(folder) / "vthink.yaml", config, evaluation_gpus))
        about: dict[str, Any] = {
            "display_name": name,
            "description": f"vthink {__version__}" + (f"; rows {rows}" if rows else ""),
            "experiment_id": self._experiment(experiment or config.tracking.experiment),
            "pipeline_version_reference": kfp_server_api.V2beta1PipelineVersionReference(pipeline_id, version_id),
            "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=arguments(config, context)),
            "service_account": service_account,
        }
        if schedule:
            return self._schedule(about, schedule)
        runs = self._client._run_api
        run = self._create(
            "start the run",
            lambda: runs.run_service_create_run(kfp_server_api.V2beta1Run(**about)),
            lambda: next(iter(self._list(runs.run_service_list_runs, "runs", _named(name))), None),
        )
        return SubmittedRun(run.run_id, f"{self.host}/#/runs/details/{run.run_id}", name)

    def _schedule(self, about: dict[str, Any], cron: str) -> SubmittedRun:
        import kfp_server_api

        api, name = self._client._recurring_run_api, about["display_name"]
        trigger = kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron))
        recurring = kfp_server_api.V2beta1RecurringRun(
            **about, trigger=trigger, mode=kfp_server_api.RecurringRunMode.ENABLE, max_concurrency="1", no_catchup=True
        )
        made = self._create(
            "schedule the run",
            lambda: api.recurring_run_service_create_recurring_run(recurring),
            lambda: next(
                iter(self._list(api.recurring_run_service_list_recurring_runs, "recurring_runs", _named(name))), None
            ),
        )
        return SubmittedRun(made.recurring_run_id, f"{self.host}/#/recurringrun/details/{made.recurring_run_id}", name)

    def _experiment(self, name: str) -> str:
        import kfp_server_api

        api = self._client._experiment_api

        def find() -> Any:
            found = api.experiment_service_list_experiments(filter=_named(name), page_size=1, **self._scope)
            return found.experiments[0] if found.experiments else None

        about = kfp_server_api.V2beta1Experiment(display_name=name, **self._scope)
        found = self._ask("look for the experiment", find) or self._create(
            "create the experiment", lambda: api.experiment_service_create_experiment(about), find
        )
        return str(found.experiment_id)

    def _list(self, call: Callable[..., Any], key: str, condition: str, count: int = 1) -> list[Any]:
        found = call(filter=condition, sort_by="created_at desc", page_size=count, **self._scope)
        return list(getattr(found, key) or [])

    def recent(self, name: str = "", count: int = 10) -> list[Any]:
        """The newest runs (``V2beta1Run``) of our pipeline whose name contains ``name``, newest first."""
        api = self._client._run_api
        listed = self._ask("list runs", self._list, api.run_service_list_runs, "runs", _containing(name), count)
        return [run for run in listed if _context(run) is not None]

    def redo(self, name: str) -> dict[Stage, int]:
        """How often each stage was asked to start afresh, as the newest run of a configuration says."""
        for run in self.recent(f"{name}-"):
            context = _context(run)
            if context is not None and run.display_name.startswith(f"{name}-"):
                return {stage: context.redo[stage] for stage in STAGES if stage in context.redo}
        return {}

    def rows(self, name: str) -> str | None:
        """Fingerprint of the rows that the newest run of a configuration was started for; None: not known."""
        for run in self.recent(f"{name}-", count=50):
            if run.display_name.startswith(f"{name}-") and (found := _ROWS.search(run.description or "")):
                return found[1]
        return None

    def find(self, run: str) -> Any:
        """A run (``V2beta1Run``) by KFP's id, or by its name."""
        if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", run):
            for found in self.recent(run):
                if found.display_name == run:
                    return self.get(found.run_id)
        try:
            return self.get(run)
        except SubmitError as error:
            if error.status != 404:
                raise
            raise SubmitError(f"no run '{run}' in {self.host}; `vthink status` lists the newest", 404) from error

    def get(self, run_id: str) -> Any:
        """A run (``V2beta1Run``) with the states of its tasks."""
        return self._ask(f"read run {run_id}", self._client._run_api.run_service_get_run, run_id)

    def cancel(self, run: str) -> str:
        """Stop a run, or delete a recurring run; says which."""
        recurring = self._client._recurring_run_api
        try:
            found = self.find(run)
        except SubmitError as error:
            if error.status != 404:
                raise
            try:
                self._ask("delete it", recurring.recurring_run_service_delete_recurring_run, run)
            except SubmitError as failure:
                raise (error if failure.status == 404 else failure) from failure
            return "deleted the recurring run"
        if ending(found) is not None:
            return f"already over: {ending(found)}"
        self._repeat("stop the run", self._client._run_api.run_service_terminate_run, found.run_id)
        return "stopping"

    def retry(self, run: str) -> SubmittedRun:
        """Continue a failed or stopped run where it ended."""
        found = self.find(run)
        if ending(found) not in ("failed", "canceled"):
            raise SubmitError(f"{run} is {ending(found) or 'not over'}: only a failed or stopped run is retried")
        self._repeat("retry the run", self._client._run_api.run_service_retry_run, found.run_id)
        return SubmittedRun(found.run_id, f"{self.host}/#/runs/details/{found.run_id}", found.display_name)

    def _repeat(self, what: str, call: Callable[..., Any], *args: Any) -> None:
        """A request that does no harm twice."""
        for attempt in range(_ATTEMPTS):
            try:
                self._ask(what, call, *args)
                return
            except SubmitError as error:
                if not error.passing or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S * 2**attempt)

    def wait(
        self,
        run_id: str,
        on_change: Callable[[Mapping[Stage, StageProgress]], None],
        on_silence: Callable[[str], None] = lambda _: None,
        poll_s: float = 5.0,
        patience_s: float = 3600.0,
    ) -> Any:
        """Follow a run to its end; however long it queues.

        Args:
            run_id: KFP's id.
            on_change: gets the stages at each look.
            on_silence: gets the reason, once, when KFP stops answering.
            poll_s: seconds between two looks.
            patience_s: how long KFP may be silent.

        Raises:
            SubmitError: KFP was silent for longer, or does not know us any more. The run goes on.
        """
        answered, silent = time.monotonic(), False
        while True:
            try:
                run = self.get(run_id)
                answered, silent = time.monotonic(), False
                on_change(stages(run))
                if ending(run) is not None:
                    return run
            except SubmitError as error:
                if not error.passing or time.monotonic() - answered > patience_s:
                    raise SubmitError(
                        f"{error}; the run goes on, see `vthink status {run_id}`", error.status
                    ) from error
                if not silent:
                    on_silence(str(error))
                silent = True
            time.sleep(poll_s)

    def logs(self, run: Any, stage: Stage) -> Iterator[str]:
        """What the tasks of a stage printed, line by line, as KFP's page gives it.

        Raises:
            SubmitError: the stage has no pod yet, or its log is gone.
        """
        import httpx

        pods = _pods(run, stage)
        if not pods:
            raise SubmitError(f"stage {stage} of {run.display_name} has not started a pod")
        config = self._client._run_api.api_client.configuration
        token = config.get_api_key_with_prefix("authorization")
        headers = {"authorization": token} if token else {}
        for pod, created in pods:
            query = {"podname": pod, "runid": run.run_id, "podnamespace": self.namespace, "createdat": created}
            try:
                with httpx.stream(
                    "GET", f"{self.host}/k8s/pod/logs", params=query, headers=headers, timeout=TIMEOUT_S[1]
                ) as answer:
                    if answer.status_code != 200:
                        raise SubmitError(f"no log of {pod}: {self.host} answered {answer.status_code}")
                    for line in answer.iter_lines():
                        yield _CONTROL.sub("", line)
            except httpx.HTTPError as error:
                raise SubmitError(f"no log of {pod}: {self.host} does not answer ({type(error).__name__})") from error


def _message(error: Any) -> str:
    """What KFP says about an error, shortened to a line."""
    body = str(getattr(error, "body", "") or "")
    try:
        told = json.loads(body)
        body = str(told.get("message") or told.get("error") or body)
    except (ValueError, AttributeError):
        pass
    return " ".join(f"{error.reason or ''} {body}".split())[:200]
