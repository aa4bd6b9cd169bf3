"""Training with torchrun on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .diagnose import explain_failure
from .job import training_environment, worker_command, write_job
from .process import _TAIL_LINES, LaunchError, NoResultError, spawn

if TYPE_CHECKING:
    from ..config import Stage
    from ..context import RunContext
    from ..storage.manifest import Manifest


def torchrun_command(context: RunContext, module: str, job_uri: str, log_dir: Path) -> list[str]:
    """torchrun on this machine."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        "--max-restarts=0", f"--nproc-per-node={context.launch.processes}",
    ]  # fmt: skip
    if context.launch.processes > 1:
        # Copies every worker's output here with its rank in front.
        command += ["--tee=3", f"--log-dir={log_dir}"]
    return [*command, *worker_command(module, job_uri)]


def run_training(
    context: RunContext,
    stage: Stage,
    module: str,
    job: Mapping[str, Any],
    fingerprint: str,
    prefix: str,
    on_log: Callable[[str], None] | None = None,
    grace_s: float = 120.0,
) -> Manifest:
    """Train in processes of their own, here or in a `TrainJob`, and return the manifest they wrote.

    Args:
        context: the run.
        stage: name of the stage.
        module: worker module; started as ``torchrun … -m <module> --job <uri>``, it reads its job with
            `read_job`, calls `die_with_owner`, and its rank 0 writes the manifest last.
        job: what the worker is told, JSON; `write_job` adds the stage, fingerprint, prefix and run.
        fingerprint: of the stage.
        prefix: where the stage's output goes, ending in ``/``.
        on_log: gets each line that the workers print; default: standard output.
        grace_s: how long the workers may take to end after a SIGTERM, which is passed on to them (here).

    Raises:
        LaunchError: the training failed; says why as far as its output tells.
        SystemExit: this process was asked to end (SIGTERM). Workers here have ended; a TrainJob is deleted if the run
            was cancelled, and goes on otherwise.
    """
    from ..storage.manifest import Manifest
    from ..storage.names import as_prefix
    from ..storage.s3 import Storage

    prefix = as_prefix(prefix)
    on_log = on_log or (lambda line: print(line, flush=True))
    if context.launch.backend == "trainjob":
        from .kubernetes import backend

        return backend.run(context, stage, module, job, fingerprint, prefix, on_log)
    if context.launch.nodes != 1:
        raise LaunchError(f"launch.nodes={context.launch.nodes}: launch.backend=local trains on one node")
    storage = Storage(context.storage)
    uri = write_job(storage, context, stage, job, fingerprint, prefix)
    recent: deque[str] = deque(maxlen=400)
    stopped = threading.Event()

    with _scratch(context, stage) as scratch:
        command = torchrun_command(context, module, uri, scratch)
        with spawn(command, env={**os.environ, **training_environment(context)}) as process:

            def stop(*_: object) -> None:
                if not stopped.is_set():
                    stopped.set()
                    process.terminate()
                    force = threading.Timer(grace_s, process.terminate)
                    force.daemon = True
                    force.start()

            with _on_sigterm(stop):
                for line in process.lines:
                    line = _RANK.sub(r"[rank \1] ", line)
                    recent.append(line)
                    on_log(line)
                code = process.wait()
    if stopped.is_set():
        raise SystemExit(128 + signal.SIGTERM)
    if code != 0:
        raise LaunchError(f"{stage}: {explain_failure(code, list(recent))}", list(recent)[-_TAIL_LINES:])
    manifest = Manifest.find(storage, prefix)
    if manifest is None or manifest.fingerprint != fingerprint:
        raise NoResultError(stage, prefix, list(recent))
    return manifest


_RANK = re.compile(r"^\[[^\]\d]*(\d+)\]:\s?")


@contextlib.contextmanager
def _on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Handle SIGTERM inside the block; only the main thread can, elsewhere it stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _scratch(context: RunContext, stage: str) -> Iterator[Path]:
    import tempfile

    if context.work_dir is not None:
        Path(context.work_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{stage}-", dir=context.work_dir, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
