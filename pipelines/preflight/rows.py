"""Whether rows have what the stages of a configuration need: splits, reasoning, kinds. Nothing is decoded."""

from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field

from ...components.common.answers.formats import ResponseError, write_response
from ...components.common.config import Stage
from ...components.common.errors import UserError
from ...components.common.model.prompts import get_template
from ...components.common.rows.sample import Sample
from ...components.common.storage.s3 import Storage
from ...components.common.training.config import TrainingConfig
from ...components.data_prep.config import SYNTHESIZE
from ...components.data_prep.plan import excluding_setting, held_out, hold_out, mixture_group, mixture_shares
from ...components.data_prep.validate import FileReport, validate_rows
from ..config import Config
from .evaluation import GateCensus
from .finding import Finding, settings

MAX_ROWS, MAX_OBJECTS = 20_000, 50
"""Rows, and media in a store, that are looked at, so that it takes seconds; `data validate` looks at all."""
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
_TRAINING: tuple[Stage, ...] = ("sft", "grpo")


@dataclass
class RowCensus:
    """What a file of rows holds, as a configuration will use it."""

    config: Config
    rows: Counter[str] = field(default_factory=Counter)  # by split, after `data.holdout`
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # by split
    types: dict[str, Counter[str]] = field(default_factory=dict)
    trained: Counter[str] = field(default_factory=Counter)  # training rows that a stage takes
    no_response: list[int] = field(default_factory=list)  # lines of those from which SFT can write no response
    with_evidence: int = 0
    with_reasoning: int = 0
    files: dict[str, str] = field(
        default_factory=dict
    )  # the split that each video or image, by its `media_name`, had in the file
    images: int = 0
    groups: Counter[str] = field(default_factory=Counter)  # training rows by group of `DataPrepConfig.weights`
    gate: GateCensus = field(init=False)  # of the rows that are evaluated

    def __post_init__(self) -> None:
        self.gate = GateCensus(self.config)

    @property
    def answer_format(self) -> str:
        """The shape of SFT's targets."""
        response = self.config.sft.response
        return get_template(self.config.model.prompt).answer_format if response == "auto" else response

    def add(self, line: int, row: Sample, name: str) -> None:
        """Count a good row. ``name``: its medium's `media_name`."""
        self.files[name] = row.split
        self.with_evidence += bool(row.evidence)
        self.with_reasoning += bool(row.reasoning)
        self.images += row.media.kind == "image"
        if excluding_setting(sample := hold_out(row, self.config.data.holdout, name), self.config.data):
            return
        self.rows[sample.split] += 1
        self.kinds.setdefault(sample.split, Counter())[str(sample.metadata.get("kind", ""))] += 1
        self.types.setdefault(sample.split, Counter())[sample.problem_type] += 1
        if (group := mixture_group(sample, self.config.data.weights)) is not None:
            self.groups[group] += 1
        if sample.split == self.config.evaluation.split:
            self.gate.add(sample, name)
        for stage in _TRAINING:
            if sample.split == "train" and is_taken(sample, getattr(self.config, stage)):
                self.trained[stage] += 1
                if stage == "sft" and not self._has_response(sample):
                    self.no_response.append(line)

    def _has_response(self, sample: Sample) -> bool:
        try:
            return bool(write_response(sample, self.answer_format))
        except ResponseError:
            return False


def is_taken(sample: Sample, section: TrainingConfig) -> bool:
    """Whether a training stage uses a row."""
    kind_is_wanted = not section.kinds or sample.metadata.get("kind") in section.kinds
    return kind_is_wanted and (section.images or sample.media.kind == "video")


def count_rows(config: Config, storage: Storage | None = None) -> tuple[FileReport, RowCensus]:
    """Read the rows of a configuration, `MAX_ROWS` of them at most. Raises UserError: they cannot be read at all."""
    census, data = RowCensus(config), config.data
    most = min(MAX_ROWS, data.max_rows or MAX_ROWS)
    read = (data.format, data.roots, data.columns)
    report = validate_rows(data.source, storage, *read, visit=census.add, max_rows=most, max_objects=MAX_OBJECTS)
    return report, census


def holdout_shares(files: Mapping[str, str], wanted: Collection[str]) -> dict[str, float] | None:
    """The shares of `DataPrepConfig.holdout` that give each of these splits some of the training videos: at least five
    of them, or a tenth where there are fewer than fifty. None: there are too few videos to share."""
    training = [name for name, split in files.items() if split == "train"]
    least = max(1, min(5, len(training) // 10))
    for share in _SHARES:
        shares = dict.fromkeys(sorted(wanted), share)
        if sum(shares.values()) >= 0.7:
            return None
        drawn = Counter(held_out(name, shares) for name in training)
        if all(drawn[split] >= least for split in wanted) and drawn["train"] >= least:
            return shares
    return None


def examine_rows(
    config: Config, stages: Collection[Stage], storage: Storage | None = None, away: bool = False
) -> Generator[Finding, None, int]:
    """Look at the rows of ``data.source`` for what the stages need; how many there are. ``away``: stages run elsewhere,
    and may be able to read what cannot be read here."""
    if config.data.source == SYNTHESIZE:
        return (yield from _examine_world(config, stages))
    try:
        report, census = count_rows(config, storage)
    except UserError as error:
        yield Finding("rows", "unknown" if away else "bad", f"{error}; see data.source")
        return 0
    problems = [*_file_problems(report, config), *_split_problems(census, stages, report.whole)]
    if report.whole:
        problems += [*_mixture_problems(census), *_kind_problems(census, stages)]
    if report.whole and "evaluate" in stages and census.rows[config.evaluation.split]:
        problems += census.gate.problems()
    if "sft" in stages and census.no_response:
        problems.append(_no_reasoning(census))
    if not problems:
        counts = ", ".join(f"{split} {count}" for split, count in census.rows.items())
        left = (
            f"; {report.bad} of {report.rows} cannot be used: vthink data validate {report.path}" if report.bad else ""
        )
        some = "" if report.whole else f" (the first {report.rows:,})"
        yield Finding("rows", "ok", f"{report.path}: {counts}, {report.media} videos and images{some}{left}")
    yield from (Finding("rows", "bad", problem) for problem in problems)
    return report.rows


def _examine_world(config: Config, stages: Collection[Stage]) -> Generator[Finding, None, int]:
    world = config.data.synthesize
    sizes = {"train": world.num_train, "validation": world.num_validation, "test": world.num_test}
    if empty := [split for split in _needed(config, stages) if not sizes.get(split)]:
        key = f"data.synthesize.num_{empty[0]}" if empty[0] in sizes else "evaluation.split"
        yield Finding("rows", "bad", f"the generated world has nothing in the split '{empty[0]}'; see {key}")
    else:
        yield Finding("rows", "ok", ", ".join(f"{split} {count}" for split, count in sizes.items()) + ", generated")
    return sum(sizes.values())


def _needed(config: Config, stages: Collection[Stage]) -> list[str]:
    """The splits that the stages read."""
    training = ["train", "validation"] if set(stages) & set(_TRAINING) else []
    return list(dict.fromkeys([*training, *([config.evaluation.split] if "evaluate" in stages else [])]))


def _file_problems(report: FileReport, config: Config) -> Iterator[str]:
    if not report.rows:
        yield f"{report.path}: there are no rows in it"
    elif report.bad > config.data.max_quarantined * report.rows or report.bad == report.rows:
        first = report.problems[0]
        yield (
            f"{report.path}: {report.bad} of {report.rows} rows cannot be used, the first in line {first.line} "
            f"({first.detail or first.reason}); list them: vthink data validate {report.path}; or allow it: "
            f"{settings('data.max_quarantined=0.5')}"
        )


def _split_problems(census: RowCensus, stages: Collection[Stage], whole: bool) -> Iterator[str]:
    config = census.config
    missing = [split for split in _needed(config, stages) if not census.rows[split]] if whole and census.files else []
    if not missing:
        return
    there = ", ".join(f"{split} {count}" for split, count in census.rows.items()) or "none"
    use = {"train": "training reads", "validation": "training is validated on", config.evaluation.split: "is evaluated"}
    for split in missing:
        shares = holdout_shares(census.files, {*config.data.holdout, *missing} - {"train"})
        what = f"no row is in the split '{split}', which {use[split]} (rows: {there})"
        if split == "train" or shares is None:
            yield f"{what}; name it in the column 'split' of {config.data.source}, or bring more videos"
        else:
            how = settings(*(f"data.holdout.{name}={share:g}" for name, share in shares.items()))
            yield f"{what}; hold some of the videos out: {how}"


def _mixture_problems(census: RowCensus) -> Iterator[str]:
    try:
        if census.rows["train"]:
            mixture_shares(census.groups, census.config.data)
    except UserError as error:
        yield f"{error}; change data.weights"


def _kind_problems(census: RowCensus, stages: Collection[Stage]) -> Iterator[str]:
    config = census.config

    def check(
        key: str, wanted: Collection[str], split: str, by: Mapping[str, Counter[str]], what: str
    ) -> Iterator[str]:
        there = by.get(split)
        if wanted and there and not set(wanted) & set(there):
            listed = ", ".join(sorted(name for name in there if name)) or f"none has a {what}"
            yield (
                f"{key}: no row of the split '{split}' is of the {what} {', '.join(wanted)} (there: {listed}); "
                f"{settings(f'{key}=[]')} takes all"
            )

    for stage in _TRAINING:
        section: TrainingConfig = getattr(config, stage)
        if stage not in stages:
            continue
        yield from check(f"{stage}.kinds", section.kinds, "train", census.kinds, "kind")
        yield from check(f"{stage}.validation.kinds", section.validation.kinds, "validation", census.kinds, "kind")
        if not section.kinds and census.rows["train"] and not census.trained[stage]:
            how = settings(f"{stage}.images=true")
            yield f"{stage}.images=false leaves no training row: all of them are images; {how}"
    if "evaluate" not in stages:
        return
    split = config.evaluation.split
    for number, rule in enumerate(config.evaluation.gate):
        for name, by, what in ((rule.by_kind, census.kinds, "kind"), (rule.by_type, census.types, "problem type")):
            if name and rule.benchmark is None:
                for problem in check(f"evaluation.gate[{number}]", [name], split, by, what):
                    yield problem.partition(";")[0] + "; leave the rule out of evaluation.gate, or change it"
    if "deploy" in stages:
        yield from check("deployment.smoke_kinds", config.deployment.smoke_kinds, split, census.kinds, "kind")


def _no_reasoning(census: RowCensus) -> str:
    count, total, style = len(census.no_response), census.trained["sft"], census.answer_format
    lacks = (
        "evidence spans (start, end, caption)" if style == "video_thinker" and census.with_reasoning else "reasoning"
    )
    what = (
        f"from {count} of {total} training rows SFT can write no {style} response, the first in line "
        f"{census.no_response[0]}: they have no {lacks}"
    )
    source = census.config.data.source
    ways = [f"train without SFT: {settings('sft.enabled=false')}"]
    if style == "video_thinker" and census.with_reasoning >= total:
        ways.insert(0, f"learn their plain reasoning: {settings('model.prompt=video_r1/1')}")
    ways.append(f"or have some written: vthink data curate {source} -o curated.jsonl --set curation.method=cot")
    return f"{what}; {'; '.join(ways)}"
