"""The registry of benchmarks: published sets, each with a reader of its files and the scores that it reports.

A reader tolerates what the published files really hold (letters missing before options, options that are null, answers
with text behind the letter) and refuses everything else with file, row and field: a file that is read halfway would be
another benchmark under the same name. What each benchmark asks, how its scores are defined and which traps it has
stands in ``components/evaluation/README.md``. Nothing here needs torch.

Adding a benchmark is one file beside this one and its entry here, or a module of one's own: ``my_module:BENCHMARK`` is
taken wherever a name is.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...common.errors import UserError
from ...common.registry import Registry
from .benchmark import Benchmark
from .cg_bench import CG_BENCH, CG_BENCH_REASONING
from .mmvu import MMVU
from .mvbench import MVBENCH
from .own import own_set
from .tempcompass import TEMPCOMPASS
from .video_holmes import VIDEO_HOLMES
from .videomme import VIDEOMME
from .videommmu import VIDEOMMMU
from .vrbench import VRBENCH, VRBENCH_SUMMARY
from .vsi_bench import VSI_BENCH

_LIST = (
    VIDEO_HOLMES,
    CG_BENCH,
    CG_BENCH_REASONING,
    VRBENCH,
    VRBENCH_SUMMARY,
    VIDEOMMMU,
    VSI_BENCH,
    MMVU,
    MVBENCH,
    TEMPCOMPASS,
    VIDEOMME,
)

BENCHMARKS: Registry[Benchmark] = Registry("benchmark", Benchmark, {benchmark.name: benchmark for benchmark in _LIST})
"""The benchmarks there are, by name."""


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name or ``my_module:BENCHMARK``, or a set of one's own by its YAML file.

    Raises:
        UserError: there is none, with the nearest name; or the file has a mistake.
    """
    if name.endswith((".yaml", ".yml")):
        return own_set(Path(name))
    try:
        return BENCHMARKS.get(name)
    except UserError as error:
        raise UserError(f"{error}; your own set: a .yaml file that describes it") from None


def benchmark_key(name: str) -> str:
    """A benchmark's name in metrics and files: ``video_holmes`` for ``video-holmes``."""
    return re.sub(r"\W+", "_", name).strip("_")
