"""The plan: every row is read once, those that are used are chosen, and their files are spread over the shards."""

import contextlib
import functools
import hashlib
import sqlite3
import tempfile
import time
from collections import Counter, deque
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from ... import __version__
from ..common.errors import UserError
from ..common.progress import progress_bar
from ..common.rows.files import RowError, to_line
from ..common.rows.sample import Sample
from ..common.storage.names import fingerprint, join, sha256_file, stage_prefix
from ..common.video.clip import MAX_PARTS
from ..common.video.decode import decoder_version
from ..common.video.workers import map_in_order
from .config import SYNTHESIZE, DataPrepConfig
from .dataset.data_card import pass_rate
from .dataset.ledger import kept_split
from .formats.read import SourceRows, read_rows
from .records import LAYOUT, Plan, Quarantined, Shard, ShardFile, media_id
from .source import media_name, open_source, resolve_uri
from .task import STAGE, TRANSFERS, PrepareTask, in_use, log, open_ledger, world_folder

MIN_ROWS_PER_SHARD, FEW_SHARDS = 32, 4  # a shard takes seconds to start: with fewer rows there are fewer of them
IDS_TABLE = "CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID;"  # what `check_row` needs in a ledger


def check_row(
    line: int, row: Sample | RowError, base: str, ledger: sqlite3.Connection, number: int | None
) -> Sample | Quarantined:
    """The row with the full URI of its media (``base``: what relative ones count from), or why it cannot be used.
    ``ledger``, with `IDS_TABLE`, notes the row's id. ``number`` counts the rows, where ids do no more: an id that is
    taken gets it added. None: that is a mistake."""
    if isinstance(row, RowError):
        return Quarantined(line=line, reason="unreadable_row", detail=row.reason, raw=row.raw)
    try:
        uri = resolve_uri(row.media.uri, base)
    except ValueError as error:
        return Quarantined.of(line, row, "missing_media", str(error))
    row = row.model_copy(update={"media": row.media.model_copy(update={"uri": uri})})
    taken = "SELECT line FROM ids WHERE id = ?"
    earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None and number is not None:
        row = row.model_copy(update={"id": f"{row.id}#{number}"})
        earlier = ledger.execute(taken, (row.id,)).fetchone()
    if earlier is not None:
        return Quarantined.of(line, row, "duplicate_id", f"the id is already that of line {earlier[0]}")
    ledger.execute("INSERT INTO ids VALUES (?, ?)", (row.id, line))
    return row


def hold_out(sample: Sample, holdout: Mapping[str, float], name: str) -> Sample:
    """The row in the split that its file, of this `media_name`, goes to (`DataPrepConfig.holdout`)."""
    split = held_out(name, holdout) if sample.split == "train" else sample.split
    return sample if split == sample.split else sample.model_copy(update={"split": split})


def held_out(name: str, holdout: Mapping[str, float]) -> str:
    """The split that a file of the split ``train`` goes to, by its `media_name`."""
    drawn = _unit(f"holdout/{name}")
    for split, share in sorted(holdout.items()):
        if drawn < share:
            return split
        drawn -= share
    return "train"


def excluding_setting(sample: Sample, config: DataPrepConfig) -> str | None:
    """The setting on pass rates that leaves a training row out."""
    rate = pass_rate(sample)
    if rate is None or sample.split != "train":
        return None
    if config.min_pass_rate is not None and rate < config.min_pass_rate:
        return "min_pass_rate"
    return "max_pass_rate" if config.max_pass_rate is not None and rate > config.max_pass_rate else None


def mixture_group(sample: Sample, weights: Mapping[str, float]) -> str | None:
    """The group of a training row in the mixture (`DataPrepConfig.weights`); None: it is in none."""
    names = (f"{sample.source}/{sample.problem_type}", sample.source, f"*/{sample.problem_type}", "*")
    return next((name for name in names if name in weights), None) if sample.split == "train" else None


def mixture_shares(rows: Mapping[str, int], config: DataPrepConfig) -> dict[str, float]:
    """The share of each group's rows that makes the mixture, the scarcest group being used whole. Raises UserError: a
    group has no rows, so that there is no such mixture."""
    positive = {name: weight for name, weight in config.weights.items() if weight > 0}
    if empty := [name for name in positive if not rows[name]]:
        raise UserError(f"data.weights: no training row of {config.source} is in the group '{empty[0]}'")
    scale = min((rows[name] / weight for name, weight in positive.items()), default=0.0)
    return {name: min(1.0, scale * weight / max(1, rows[name])) for name, weight in config.weights.items()}


def _unit(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def plan_data(run: str, config: str, video: str) -> list[str]:
    """Read the rows, choose which are used, spread their files over the shards, and write each shard's rows.

    ``run``: `RunContext`, ``config``: `DataPrepConfig`, ``video``: `VideoConfig`, as JSON. Returns one `Shard` as JSON
    for each; the same ones when called again. Raises UserError: the source cannot be read at all, has no rows, or
    ``weights`` names none of them."""
    task = PrepareTask.read(run, config, video)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(task.folder())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plan-", dir=folder)))
        source = open_source(task.config.source, task.storage, scratch) if task.config.source != SYNTHESIZE else None
        source_sha256 = sha256_file(source.path) if source is not None else ""
        settings = (task.result_settings(), task.video.model_dump(mode="json"))
        redo = task.context.redo.get(STAGE, 0)
        made_by = __version__, decoder_version(task.video)  # two decoders' pictures are not mixed within a set
        fp = fingerprint(STAGE, LAYOUT, *settings, source_sha256, redo, *made_by)
        prefix = stage_prefix(task.context, STAGE, fp)
        world = world_folder(folder, prefix)
        if source is None:
            stack.enter_context(in_use(world, shared=False))
        if (earlier := Plan.find(task.storage, Plan.uri(prefix))) is not None:
            log(f"prepare {fp}: plan reused")
            return [shard.to_json() for shard in earlier.shards]
        if source is not None:
            section, base = task.config, source.base
            rows = read_rows(source.path, section.format, section.roots, section.columns)
        else:
            base = join(prefix, "world/")
            rows = read_rows(_make_world(task, world, base), None, task.config.roots)
        (scratch / "plan").mkdir()
        rows_in, left_out, sizes = _assign(rows, base, task.config, scratch)
        if not rows_in:
            raise UserError(f"{task.config.source}: there are no rows in it")
        for file in sorted((scratch / "plan").iterdir()):
            task.storage.upload_file(file, join(prefix, "plan", file.name))
    shard_of = functools.partial(Shard, fingerprint=fp, prefix=prefix, count=len(sizes))
    shards = [shard_of(index=index, rows=count, media=media) for index, (count, media) in enumerate(sizes)]
    Plan(
        shards=tuple(shards), rows_in=rows_in, left_out=dict(left_out), source=task.config.source,
        format=rows.format.name, source_sha256=source_sha256, seconds=time.monotonic() - start,
    ).write(task.storage, Plan.uri(prefix))  # fmt: skip
    media = sum(shard.media for shard in shards)
    log(f"prepare {fp}: {rows_in} rows, {media} videos and images, {len(shards)} shard(s)")
    return [shard.to_json() for shard in shards]


def _make_world(task: PrepareTask, folder: Path, base: str) -> Path:
    """Generate the world on this machine and copy it to the store; its rows last."""
    from .world.synthesize import synthesize

    start = time.monotonic()
    with progress_bar("synthesize") as progress:
        rows = synthesize(task.config.synthesize, folder, progress=progress, processes=task.workers)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != rows]

    def send(path: Path) -> None:
        task.storage.write_bytes(join(base, path.relative_to(folder).as_posix()), path.read_bytes())

    deque(map_in_order(send, files, TRANSFERS, 4 * TRANSFERS), maxlen=0)
    send(rows)
    log(f"synthesize: {len(files)} files in {time.monotonic() - start:.1f} s")
    return rows


_TABLES = f"""
{IDS_TABLE}
CREATE TABLE files (number INTEGER PRIMARY KEY, uri TEXT, kind TEXT, split TEXT, UNIQUE (uri, kind));
CREATE TABLE media (id TEXT PRIMARY KEY, file INTEGER, start_s REAL, end_s REAL);
CREATE INDEX media_of_file ON media (file);
"""


def _assign(
    rows: SourceRows, base: str, config: DataPrepConfig, folder: Path
) -> tuple[int, Counter[str], list[tuple[int, int]]]:
    """Write ``rows-<shard>.jsonl``, ``files-<shard>.jsonl`` and ``quarantine.jsonl`` below ``plan``. Files go to the
    shards in turn, as they first appear. Rows read; those left out, by setting; rows and media of each shard."""
    rows_in = 0
    left_out, groups = Counter[str](), Counter[str]()
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(contextlib.closing(open_ledger(folder, _TABLES)))
        # Once through the source, to see what there is; then through what is good in it, to choose.
        with (folder / "good.jsonl").open("w", encoding="utf-8") as good:
            quarantine = stack.enter_context((folder / "plan/quarantine.jsonl").open("w", encoding="utf-8"))
            for line, row in islice(rows, config.max_rows):
                rows_in += 1
                name = "" if isinstance(row, RowError) else media_name(row, base, rows.roots)
                checked = check_row(line, row, base, ledger, None if rows.format.unique_ids else rows_in)
                if isinstance(checked, Quarantined):
                    quarantine.write(checked.to_json() + "\n")
                    continue
                sample = hold_out(checked, config.holdout, name)
                if setting := excluding_setting(sample, config):
                    left_out[setting] += 1
                    continue
                if (group := mixture_group(sample, config.weights)) is not None:
                    groups[group] += 1
                good.write(f"{line}\t{to_line(sample)}\n")
        shares = mixture_shares(groups, config)
        count = min(config.shards, max(FEW_SHARDS, rows_in // MIN_ROWS_PER_SHARD))
        num_rows, num_media = [0] * count, [0] * count
        paths = [folder / f"plan/rows-{index:05d}.jsonl" for index in range(count)]
        shards = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        with (folder / "good.jsonl").open(encoding="utf-8") as good:
            for number, entry in enumerate(good):
                sample = Sample.load(entry.partition("\t")[2], "rows")
                group = mixture_group(sample, config.weights)
                share = 0.0 if group is None else shares[group]
                if config.weights and sample.split == "train" and _unit(f"weights/{sample.id}") >= share:
                    left_out["weights"] += 1
                    continue
                shard = _register(ledger, sample, num_media)
                num_rows[shard] += 1
                shards[shard].write(f"{number}\t{entry}")
        (folder / "good.jsonl").unlink()
        for index in range(count):
            _write_files(ledger, index, count, folder / f"plan/files-{index:05d}.jsonl")
    return rows_in, left_out, list(zip(num_rows, num_media, strict=True))


def _register(ledger: sqlite3.Connection, sample: Sample, num_media: list[int]) -> int:
    """Note and count the file and medium of a row; the shard that its file is in."""
    media = sample.media
    known = ledger.execute("SELECT number, split FROM files WHERE uri = ? AND kind = ?", (media.uri, media.kind))
    number, split = known.fetchone() or (None, sample.split)
    if number is None:
        insert = "INSERT INTO files (uri, kind, split) VALUES (?, ?, ?)"
        number = int(ledger.execute(insert, (media.uri, media.kind, sample.split)).lastrowid or 1)
    elif kept_split((split, sample.split)) != split:
        ledger.execute("UPDATE files SET split = ? WHERE number = ?", (sample.split, number))
    shard = (number - 1) % len(num_media)
    insert = "INSERT OR IGNORE INTO media VALUES (?, ?, ?, ?)"
    num_media[shard] += ledger.execute(insert, (media_id(media), number, media.start_s, media.end_s)).rowcount
    return shard


def _write_files(ledger: sqlite3.Connection, shard: int, shards: int, path: Path) -> None:
    """The files of a shard, a line each, with the parts that are shown; a file of many parts has several lines."""
    query = "SELECT number, uri, kind, split FROM files WHERE (number - 1) % ? = ? ORDER BY number"
    with path.open("w", encoding="utf-8") as lines:
        for number, uri, kind, split in ledger.execute(query, (shards, shard)):
            query = "SELECT id, start_s, end_s FROM media WHERE file = ? ORDER BY start_s, end_s"
            parts = ledger.execute(query, (number,))
            while some := parts.fetchmany(MAX_PARTS):
                lines.write(ShardFile(uri=uri, kind=kind, split=split, parts=tuple(some)).to_json() + "\n")
