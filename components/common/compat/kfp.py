"""Kubeflow Pipelines 2.17.0: what its client and ``kfp.local`` leave open or get wrong, and how we live with it.

- ``kfp.Client`` waits without a limit, asks an unreachable server for half a minute, reads a file in the home folder,
  has no public way to the whole API (only to wrappers of parts of it), and takes a login page for an answer: `connect`.
- ``kfp.local`` reports progress in no other way than by printing it, colours included, and leaves outputs in files
  whose place is not documented: `task_event`, `is_noise`, `plain`, `task_output`.
- ``kfp.local`` raises RuntimeError for a task that failed and for its own faults alike: `run_here`.
- A condition on a *named* output is silently false there (kubeflow/pipelines#13313), and an integer within a list or a
  dictionary arrives as a float. No code can mend this; `pipelines/pipeline.py` uses neither.

``tests/unit/components/common/compat/test_kfp.py`` fails when one of these is mended upstream.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPEAT_AFTER_S = 0.3  # first pause before a reading request is repeated; each is twice the one before


@dataclass(frozen=True)
class KfpApis:
    """The parts of KFP's v2beta1 API, as ``kfp_server_api`` generates them."""

    health: Any
    pipelines: Any
    uploads: Any
    experiments: Any
    runs: Any
    recurring_runs: Any

    def authorization(self) -> dict[str, str]:
        """The header that the client sends, for requests beside the API."""
        token = self.runs.api_client.configuration.get_api_key_with_prefix("authorization")
        return {"authorization": token} if token else {}


def connect(
    host: str,
    namespace: str,
    ssl_ca_cert: str | None,
    credentials: Mapping[str, Any],
    timeout_s: tuple[float, float],
    on_web_page: Callable[[], Exception],
) -> KfpApis:
    """``kfp.Client``, sending nothing yet; every request has a time limit, and reading ones are repeated.
    ``timeout_s``: to connect, and to read. ``on_web_page``: what is raised when a web page is the answer."""
    import kfp
    import urllib3

    class Client(kfp.Client):
        def _load_context_setting_or_default(self) -> None:
            self._context_setting = {"namespace": namespace}

    warnings.filterwarnings("ignore", "This client only works", FutureWarning)
    client = Client(host=host, namespace=namespace, ssl_ca_cert=ssl_ca_cert, **credentials)
    rest = client._run_api.api_client.rest_client
    request = rest.request

    def bounded(*args: Any, **kwargs: Any) -> Any:
        kwargs["_request_timeout"] = kwargs.get("_request_timeout") or timeout_s
        answer = request(*args, **kwargs)
        if "html" in (answer.getheader("Content-Type") or ""):
            raise on_web_page()
        return answer

    rest.request = bounded
    rest.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(
        total=3, backoff_factor=REPEAT_AFTER_S, allowed_methods={"GET"}, status_forcelist={429, 502, 503, 504},
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    return KfpApis(
        health=client._healthz_api, pipelines=client._pipelines_api, uploads=client._upload_api,
        experiments=client._experiment_api, runs=client._run_api, recurring_runs=client._recurring_run_api,
    )  # fmt: skip


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXECUTING = re.compile(r"Executing task '([^']+)'")
_FINISHED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_NOISE = re.compile(
    r"^\s*$|^\s*[-{}\[\]\"]|KFP Executor|Streamed logs:|Executing task|finished with status|"
    r"Task '.*' (?:outputs:|has no outputs)|^\s*Output: |have no effect in the current|_warn_local_only|"
    r"During handling of the above exception|The above exception was the direct cause"
)


@dataclass(frozen=True)
class TaskEvent:
    """A task of ``kfp.local`` began or ended."""

    task: str
    succeeded: bool | None  # None: it began


class TaskFailedError(RuntimeError):
    """A task of the pipeline failed, and has printed why."""


def run_here(pipeline: Callable[..., Any], arguments: Mapping[str, Any], root: Path) -> None:
    """Run a pipeline by ``kfp.local``, each task in a process of this environment. Every exception but a
    `TaskFailedError` is a fault of KFP or of the pipeline."""
    from kfp import local

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    try:
        pipeline(**arguments)
    except RuntimeError as error:
        message = plain(str(error))
        if "finished with status FAILURE" not in message:
            raise
        raise TaskFailedError(message) from error


def plain(line: str) -> str:
    """A printed line without colours."""
    return _ANSI.sub("", line)


def task_event(line: str) -> TaskEvent | None:
    """What a plain line of ``kfp.local`` tells about a task."""
    if match := _EXECUTING.search(line):
        return TaskEvent(match[1], None)
    match = _FINISHED.search(line)
    return TaskEvent(match[1], match[2] == "SUCCESS") if match else None


def is_noise(line: str) -> bool:
    """Whether a plain line is one of ``kfp.local`` itself, which says nothing to a person."""
    return bool(_NOISE.search(line))


def task_output(root: Path, task: str) -> str:
    """What a finished task below the pipeline's ``root`` returned."""
    output = next(root.glob(f"*/{task}/executor_output.json"))
    return str(json.loads(output.read_text("utf-8"))["parameterValues"]["Output"])
