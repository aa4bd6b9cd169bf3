"""The shards put together as one data set: rows in = rows out + quarantined + left out."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError
from ..common.rows.prepared import PreparedDetails, PreparedFiles
from ..common.storage.manifest import Manifest
from ..common.storage.names import join
from ..common.tracking.run import Tracker
from .config import DataPrepConfig
from .dataset.data_card import DATA_CARD
from .dataset.ledger import CONTAMINATION
from .dataset.writer import QUARANTINE, DatasetWriter
from .records import Plan, ShardOutcome
from .report.page import write_report
from .task import STAGE, PrepareTask, in_use, log, world_folder


def merge_data(run: str, config: str, video: str, shards: Sequence[str], report: str | None = None) -> str:
    """Write the rows whose media could be decoded, the quarantine, the data set card, the report and the manifest.

    ``run``, ``config``, ``video`` as for `plan_data`; ``shards``: what `prepare_shard` returned, for every shard;
    ``report``: also write the HTML report to this file. Returns the URI of the manifest. Raises UserError: a shard is
    missing, or too many rows had to be quarantined (``max_quarantined``)."""
    task = PrepareTask.read(run, config, video)
    start = time.monotonic()
    outcomes = sorted((ShardOutcome.read(task.storage, uri) for uri in shards), key=lambda done: done.shard.index)
    places = [(done.shard.prefix, done.shard.index) for done in outcomes]
    if not outcomes or places != [(places[0][0], index) for index in range(outcomes[0].shard.count)]:
        raise UserError(f"these are not all shards of one plan: {places}")
    fp, prefix = outcomes[0].shard.fingerprint, outcomes[0].shard.prefix
    if (finished := Manifest.find(task.storage, prefix)) is not None:
        log(f"prepare {fp}: reused")
        if report is not None:
            task.storage.download_file(finished.files["report"], report)
        return finished.manifest_uri
    plan = Plan.read(task.storage, Plan.uri(prefix))
    inputs, section = {"source": task.config.source}, task.config.model_dump(mode="json")
    with task.folder() as folder, Tracker.start(task.context, STAGE, fp, section, inputs) as tracker:
        with tempfile.TemporaryDirectory(prefix="merge-", dir=folder) as name:
            writer = DatasetWriter(outcomes, plan, task, Path(name))
            writer.write()
        counts, metrics = writer.counts(), writer.metrics()
        names = {"quarantine": QUARANTINE, "card": DATA_CARD, "contamination": CONTAMINATION, "report": "report.html"}
        files = PreparedFiles(data=prefix, **{kind: join(prefix, name) for kind, name in names.items()})
        tracker.log_metrics({f"prepare/{key}": float(n) for key, n in {**counts, **metrics}.items()})
        tracker.set_tags({"vthink.data_fingerprint": fp})
        if writer.examples:
            columns = ("line", "id", "reason", "detail")
            tracker.log_table("quarantine", {name: [getattr(r, name) for r in writer.examples] for name in columns})
        _refuse_bad_source(writer, plan, files.quarantine, task.config)
        task.storage.mark_complete(prefix, writer.files)
        details = PreparedDetails(
            video=task.video, codec=task.video.frame_codec, index=writer.index_name, format=plan.format,
            files={name: (file.size, file.sha256) for name, file in sorted(writer.files.items())},
            source_sha256=plan.source_sha256,
        )  # fmt: skip
        seconds = plan.seconds + sum(done.seconds for done in outcomes) + time.monotonic() - start
        manifest = Manifest(
            stage=STAGE, fingerprint=fp, uri=prefix, inputs=inputs, counts=counts, metrics=metrics, config=section,
            files=files.model_dump(), details=details.model_dump(mode="json"), mlflow_run_id=tracker.run_id,
            seconds=seconds,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="report-", dir=folder) as name:
            page = write_report(manifest, task.storage, Path(name))
        task.storage.write_bytes(files.report, page.encode())
        tracker.log_html("data_report", page)
        if report is not None:
            Path(report).write_text(page, encoding="utf-8")
        manifest.write(task.storage)
        world = world_folder(folder, prefix)
        with in_use(world, shared=False, wait=False) as alone:
            if alone:
                shutil.rmtree(world, ignore_errors=True)
    log(f"prepare {fp}: {counts['rows_out']} rows of {counts['rows_in']}, {counts['media']} media")
    return manifest.manifest_uri


def _refuse_bad_source(writer: DatasetWriter, plan: Plan, quarantine_uri: str, config: DataPrepConfig) -> None:
    bad, total = writer.quarantined.total(), plan.rows_in
    if writer.rows_out and bad <= config.max_quarantined * total:
        return
    if not bad:
        raise UserError(f"{config.source}: no row is left; left out: {plan.left_out}")
    reason, count = writer.quarantined.most_common(1)[0]
    example = next(row for row in writer.examples if row.reason == reason)
    where = example.uri or example.id or f"line {example.line}"
    raise UserError(
        f"{config.source}: {bad} of {total} rows cannot be used (allowed: data.max_quarantined="
        f"{config.max_quarantined:g}); {count} of them {reason}, such as line {example.line} ({where}): "
        f"{example.detail}; all are listed in {quarantine_uri}"
    )
