"""All that can be known before a run starts: for ``run``, ``submit``, ``train``, ``evaluate`` and ``doctor``."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

from ...components.common.config import STAGES, Stage
from ...components.common.storage.s3 import Storage
from ..config import Config
from ..run.session import Session, is_rows
from ..run.state import is_enabled
from .evaluation import check_benchmarks, check_rewards
from .finding import Finding, finding, require
from .machine import check_accelerators, check_disk, check_model, check_tracking
from .rows import examine_rows


def examine_run(opened: Session, stages: Collection[Stage] = STAGES, rows: bool = True) -> Iterator[Finding]:
    """Look at what a run in this workspace needs, in the order in which it needs it.

    Args:
        opened: the configuration, which is sound already, and the stores, which answer.
        stages: those that are to run.
        rows: look at ``data.source``; else the data are prepared already."""
    config = opened.config
    stages = [stage for stage in stages if is_enabled(config, stage)]
    count = (yield from examine_rows(config, stages, opened.storage)) if rows else 0
    if "grpo" in stages and config.grpo.reward_config.extra:
        yield finding("rewards", partial(check_rewards, config))
    if "evaluate" in stages and config.evaluation.benchmarks:
        yield finding("benchmarks", partial(check_benchmarks, config, opened.storage))
    yield finding("model", partial(check_model, config, opened.storage))
    yield finding("accelerators", partial(check_accelerators, config, stages))
    if config.storage.endpoint_url is None:
        yield finding("disk", partial(check_disk, config, opened.workspace.root, count))
    yield finding("MLflow", partial(check_tracking, opened.context.tracking, opened.storage.config))


def require_run(opened: Session, stages: Collection[Stage] = STAGES, data: str | None = None) -> list[Finding]:
    """`examine_run`, where nothing is bad. ``data``: rows in the place of ``data.source``, or a prepared set.

    Raises:
        PreflightError: something is; lists all of it."""
    if data is not None and is_rows(data):
        section = opened.config.data
        section = type(section).load(section.model_dump() | {"source": data}, "--data")
        opened = replace(opened, config=opened.config.model_copy(update={"data": section}))
    return require(examine_run(opened, stages, data is None or is_rows(data)))


def examine_submission(config: Config) -> Iterator[Finding]:
    """Look at what a run on a cluster needs, as far as it can be seen from here."""
    stages = [stage for stage in STAGES if is_enabled(config, stage)]
    stored = config.data.source.startswith("s3://")
    storage = Storage(config.storage.model_copy(update={"outage_s": 0.0})) if stored else None
    yield from examine_rows(config, stages, storage, away=True)
    yield finding("model", partial(check_model, config, storage))
