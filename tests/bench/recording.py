"""What the benchmarks share: interleaved timing, peak memory in a process of its own, and `.vthink/bench.json`."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OUTPUT = Path(".vthink/bench.json")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One entry of `bench.json`: the same work done the plain way and ours."""

    name: str
    """Topic and case, e.g. ``log_probs/P1024-G8-C64/hidden64``."""
    plain_seconds: float | None
    """Best of the rounds, the plain way; None where there is no plain way to compare with."""
    own_seconds: float | None
    """Best of the rounds, our way."""
    plain_peak_mib: float | None = None
    """Peak resident memory of a process that did it the plain way, above what it held before."""
    own_peak_mib: float | None = None
    """The same, our way."""
    wanted_ratio: float | None = None
    """What the project promises, if it promises something."""
    setting: dict[str, Any] = field(default_factory=dict)
    """Shapes, counts, threads: what somebody needs to repeat it."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other figures of this case (a bound from counts, rows per second)."""

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        if self.plain_seconds is None or not self.own_seconds:
            return None
        return self.plain_seconds / self.own_seconds


def interleave(
    plain: Callable[[], object], own: Callable[[], object], rounds: int = 5, warm_up: int = 1
) -> tuple[float, float]:
    """Seconds of ``plain`` and ``own``, run in turns; the best round of each (noise only ever adds time)."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(warm_up + rounds):
        for index, function in enumerate((plain, own)):
            start = time.perf_counter()
            function()
            if turn >= warm_up:
                seconds[index].append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def peak_mib(function: Callable[..., object], *arguments: Any) -> float:
    """MiB of resident memory that ``function`` adds at its peak, in a fresh process (it must be importable)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        value = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} ended without a result") from None
    finally:
        process.join()
    return float(value)


def _measure_peak(sender: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    ready = function(*arguments)  # returns the work to measure, so that models and data are made beforehand
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; getrusage's would be the parent's
    before = _memory_kib("VmHWM")
    if callable(ready):
        ready()
    sender.send((_memory_kib("VmHWM") - before) / 1024)


def _memory_kib(name: str) -> int:
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return int(text.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


def record(measurements: Iterable[Measurement], output: Path = OUTPUT) -> None:
    """Add to ``output``, replacing entries of the same name, and print a line each."""
    output.parent.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, Any]] = {}
    if output.exists():
        entries = {entry["name"]: entry for entry in json.loads(output.read_text("utf-8"))}
    machine = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }
    for measurement in measurements:
        entries[measurement.name] = asdict(measurement) | {"ratio": measurement.ratio} | machine
        print(line(measurement), flush=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_text(json.dumps(list(entries.values()), indent=1), "utf-8")
    temporary.rename(output)


def line(measurement: Measurement) -> str:
    """A measurement for a terminal."""

    def shown(value: float | None, unit: str) -> str:
        return "–" if value is None else f"{value:.3g} {unit}"

    text = (
        f"{measurement.name}: plain {shown(measurement.plain_seconds, 's')}, own {shown(measurement.own_seconds, 's')}"
    )
    if measurement.ratio is not None:
        text += f", {measurement.ratio:.2f}×"
    if measurement.wanted_ratio is not None:
        text += f" (wanted {measurement.wanted_ratio:g}×)"
    if measurement.plain_peak_mib is not None or measurement.own_peak_mib is not None:
        text += f", peak {shown(measurement.plain_peak_mib, 'MiB')} against {shown(measurement.own_peak_mib, 'MiB')}"
    extra = ", ".join(f"{name} {value:.4g}" for name, value in measurement.extra.items() if isinstance(value, float))
    return f"{text}{', ' + extra if extra else ''}"
