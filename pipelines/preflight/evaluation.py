"""Whether the gate's rules can be judged, public benchmarks asked and rewards imported, before anything is trained."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...components.common.answers.formats import ResponseError, write_response
from ...components.common.model.prompts import get_template
from ...components.common.rows.sample import Sample
from ...components.common.storage.s3 import Storage
from ...components.evaluation.benchmarks.folder import Source
from ...components.evaluation.benchmarks.registry import find_benchmark
from ...components.evaluation.conditions import CONDITIONS, ORDERED
from ...components.evaluation.metrics import METRICS, Response
from ...components.evaluation.rules import GateRule
from ...components.grpo.rewards import reward_functions
from ..config import Config

_REMEDY = "leave the rule out of evaluation.gate, or change it"


class GateCensus:
    """What the held-out rows let the gate's rules see."""

    def __init__(self, config: Config) -> None:
        rules = enumerate(config.evaluation.gate)
        self._rules = {number: rule for number, rule in rules if rule.benchmark is None}
        self._unmeasured = dict(self._rules)  # those whose metric applied to no row yet
        self._format = get_template(config.model.prompt).answer_format
        self._videos, self._media = set[str](), set[str]()
        self._split = config.evaluation.split

    def add(self, row: Sample, name: str) -> None:
        """Count a held-out row. ``name``: its medium's `media_name`."""
        self._media.add(name)
        if row.media.kind == "video":
            self._videos.add(name)
        if self._unmeasured:
            response = Response(row, _true_response(row, self._format), self._format)
            for number, rule in list(self._unmeasured.items()):
                if _is_about(rule, row) and _applies(rule.metric, response):
                    del self._unmeasured[number]

    def problems(self) -> Iterator[str]:
        """What keeps a rule from being judged. Rules about kinds of rows that are not there are told elsewhere."""
        for number, rule in self._rules.items():
            key = f"evaluation.gate[{number}]"
            asked = {rule.condition, rule.other_condition} - {ORDERED, None}
            needed = max((2 if CONDITIONS.get(name).other_video else 1 for name in asked if name), default=0)
            if len(self._videos) < needed:
                what = f"under {', '.join(sorted(name for name in asked if name))}"
                yield (
                    f"{key}: {what} nothing can be asked of {len(self._videos)} videos in the split '{self._split}' "
                    f"({needed} or more); {_REMEDY}"
                )
            elif (rule.other_model or rule.other_condition) and len(self._media) < 2:
                yield (
                    f"{key}: a comparison needs two videos or more, and the split '{self._split}' has "
                    f"{len(self._media)}; hold more of them out (data.holdout), or {_REMEDY}"
                )
            if number in self._unmeasured and not (rule.by_kind or rule.by_type):
                yield f"{key}: {rule.metric} applies to no row of the split '{self._split}'; {_REMEDY}"


def _true_response(row: Sample, style: str) -> str:
    try:
        return write_response(row, style)
    except ResponseError:
        return f"<answer>{row.answer}</answer>"


def _is_about(rule: GateRule, row: Sample) -> bool:
    kind, problem_type = rule.by_kind or row.metadata.get("kind"), rule.by_type or row.problem_type
    return kind == row.metadata.get("kind") and problem_type == row.problem_type


def _applies(name: str, response: Response) -> bool:
    return name not in METRICS or METRICS.get(name).measure(response) is not None


def check_rewards(config: Config) -> str:
    """The rewards of one's own: that they can be imported here."""
    return ", ".join(reward_functions(config.grpo.reward_config))


def check_benchmarks(config: Config, storage: Storage | None) -> str:
    """The public benchmarks of ``evaluation.benchmarks``: that their published files are where the setting says."""
    for name, where in config.evaluation.benchmarks.items():
        benchmark = find_benchmark(name)
        if where != "hub":  # else it is fetched when it is asked
            with tempfile.TemporaryDirectory() as scratch:
                Source.open(where, storage, Path(scratch), benchmark.hub).folder.annotations(benchmark.files)
    return ", ".join(config.evaluation.benchmarks)
