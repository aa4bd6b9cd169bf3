import sys
from types import ModuleType

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.benchmark import Benchmark
from vthink.components.evaluation.benchmarks.registry import BENCHMARKS, benchmark_key, find_benchmark
from vthink.components.evaluation.scores import Score

from ..published import FORMATS


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UserError, match="unknown benchmark 'video_holms'; did you mean 'video-holmes'"):
        find_benchmark("video_holms")


def test_every_benchmark_says_what_it_asks_and_where_it_is_from():
    assert set(BENCHMARKS) == set(FORMATS)
    for _, benchmark in BENCHMARKS.items():
        assert benchmark.asks
        assert "arXiv" in benchmark.source
        assert all(score.definition for score in benchmark.scores.values())


def test_a_benchmark_of_ones_own_is_named_by_its_module(monkeypatch):
    module = ModuleType("my_sets")
    module.MINE = Benchmark(name="mine", title="Mine", asks="", source="here", scores={"accuracy": Score("", len)})
    monkeypatch.setitem(sys.modules, "my_sets", module)
    assert find_benchmark("my_sets:MINE") is module.MINE
    with pytest.raises(UserError, match="my_sets has no 'THEIRS'"):
        find_benchmark("my_sets:THEIRS")


def test_a_benchmark_has_a_name_that_metrics_and_files_can_hold():
    assert benchmark_key("video-holmes") == "video_holmes"
    assert benchmark_key("my set!") == "my_set"
