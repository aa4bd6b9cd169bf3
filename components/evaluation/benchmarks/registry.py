"""Public benchmarks: adapters from their published files to `Sample`, and the scores that each one reports.

An adapter tolerates what the published files really hold (letters missing before options, options that are
null, answers with text behind the letter) and refuses everything else with file, row and field: a file that is
read halfway would be another benchmark under the same name. What each benchmark asks, how its scores are
defined and which traps it has stands in README.md beside this file. Nothing here needs torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from .benchmark import Benchmark
from .cg_bench import CG_BENCH, CG_BENCH_REASONING
from .mmvu import MMVU
from .mvbench import MVBENCH
from .own import own_set
from .question import BenchmarkError
from .tempcompass import TEMPCOMPASS
from .video_holmes import VIDEO_HOLMES
from .videomme import VIDEOMME
from .videommmu import VIDEOMMMU
from .vrbench import VRBENCH, VRBENCH_SUMMARY
from .vsi_bench import VSI_BENCH

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
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
}
"""The benchmarks there are, by name."""


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name, or a set of one's own by its YAML file.

    Raises:
        BenchmarkError: there is none, with the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        return own_set(Path(name))
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(BENCHMARKS)}"
    raise BenchmarkError(f"unknown benchmark '{name}'; {hint}; your own set: a .yaml file that describes it")
