"""Tells a person how a job fares."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..config import LaunchConfig
from ..process import LaunchError
from .client import EVENT, POD, WORKLOAD, Cluster, ClusterError, Object, one_line, phase
from .diagnose import describe_state, pull_failure, quota_failure
from .trainjob import JOBSET_LABEL, nodes

_REMIND_S = 600.0
"""Seconds after which a job that still waits is mentioned again."""


@dataclass
class JobWatcher:
    """Tells a person how a job fares: its state when that changes, warnings once, every line its pods print."""

    cluster: Cluster
    launch: LaunchConfig
    name: str
    stage: str
    on_log: Callable[[str], None]
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    """The last lines that its pods printed."""
    pods: list[Object] = field(default_factory=list)
    """The last pods that were seen; a failed job's may be gone."""
    warnings: dict[str, Object] = field(default_factory=dict)
    """The events that warn of something, by their uid."""
    _reported: str = ""
    _reported_at: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _streams: dict[str, threading.Thread] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pull_failed_at: float | None = None

    def say(self, line: str) -> None:
        """A line of our own."""
        with self._lock:
            self.on_log(f"{self.stage}: {line}")

    def update(self, job: Object) -> None:
        """Read the pods, the queue and the warnings of a job, and tell what has changed.

        Raises:
            LaunchError: it can never start (no such image, no quota).
        """
        pods = self.cluster.find(POD, {JOBSET_LABEL: self.name})
        self.pods = pods or self.pods
        workloads: list[Object] = []
        with contextlib.suppress(ClusterError):  # no Kueue, or no right to look
            workloads = self.cluster.find(WORKLOAD, {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]})
        idle = [pod for pod in pods if phase(pod) != "Running"]
        # A quota's refusal is told about the batch Job that JobSet makes.
        self._read_warnings([self.name, f"{self.name}-node-0", *(pod["metadata"]["name"] for pod in idle)])
        text = describe_state(job, workloads, pods)
        now = time.monotonic()
        if text != self._reported:
            self._since = now
            self.say(text)
        elif now - self._reported_at > _REMIND_S and not text.startswith("running"):
            self.say(f"still {text} ({(now - self._since) / 60:.0f} min)")
        else:
            now = self._reported_at
        self._reported, self._reported_at = text, now
        self._stream([pod for pod in pods if phase(pod) not in (None, "Pending")])
        self._refuse(pods)

    def _refuse(self, pods: Sequence[Object]) -> None:
        if (quota := quota_failure(list(self.warnings.values()))) is not None and not pods:
            raise LaunchError(f"{self.stage}: {quota}")
        pull = pull_failure(pods, self.launch)
        if pull is None:
            self._pull_failed_at = None
            return
        first = self._pull_failed_at = self._pull_failed_at or time.monotonic()
        if "InvalidImageName" in pull.reason or time.monotonic() - first > self.launch.cluster.pull_timeout_s:
            raise LaunchError(f"{self.stage}: {pull}")

    def _read_warnings(self, names: Sequence[str]) -> None:
        for name in names:
            events: list[Object] = []
            with contextlib.suppress(ClusterError):  # they only explain
                events = self.cluster.find(EVENT, fields={"involvedObject.name": name})
            for event in events:
                key = event["metadata"]["uid"]
                if event.get("type") == "Warning" and key not in self.warnings:
                    self.warnings[key] = event
                    self.say(f"{event.get('reason')} ({name}): {one_line(event.get('message'), 250)}")

    def _stream(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            key = pod["metadata"]["uid"]
            labels = pod["metadata"].get("labels", {})
            if key in self._streams or labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") != "node":
                continue
            index = labels.get("batch.kubernetes.io/job-completion-index", "?")
            mark = f"[node {index}] " if nodes(self.launch) > 1 else ""
            thread = threading.Thread(
                target=self._follow_log, args=(pod["metadata"]["name"], mark), name=f"logs-{key}", daemon=True
            )
            self._streams[key] = thread
            thread.start()

    def _follow_log(self, pod: str, mark: str) -> None:
        """Copy what a pod prints; a stream that breaks is taken up after the last line, to the nanosecond."""
        last: tuple[str, float] | None = None
        stamp: str | None = None
        while True:
            follow = not self._ended.is_set()
            try:
                for at_text, text in self.cluster.logs(pod, "node", stamp, follow):
                    stamp, at = at_text, _instant(at_text)
                    if last is not None and at <= last:
                        continue
                    last = at
                    line = re.sub(r"^\[rank(\d+)\]:\s?", r"[rank \1] ", text.rstrip("\r"))
                    with self._lock:
                        self.recent.append(line)
                        self.on_log(mark + line)
                return  # the container has ended
            except ClusterError as error:
                if error.status == 404 or not follow:
                    return
            self._ended.wait(1.0)

    def finish(self, grace_s: float = 10.0) -> None:
        """Wait for the last lines."""
        if self._ended.is_set():
            return
        self._ended.set()
        deadline = time.monotonic() + grace_s
        for thread in self._streams.values():
            thread.join(max(0.0, deadline - time.monotonic()))


def _instant(stamp: str) -> tuple[str, float]:
    """An RFC 3339 time, comparable: seconds, then their fraction, however many digits it has."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return seconds, float(f"0.{fraction}") if fraction.isdigit() else 0.0
