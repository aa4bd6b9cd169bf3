"""A configuration for somebody's own rows: ``vthink init`` writes it, small, with a comment a line."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..components.common.errors import UserError
from ..components.common.storage.s3 import Storage
from ..components.data_prep.formats.columns import Columns
from ..components.data_prep.validate import FileReport
from .config import Config, load
from .preflight.machine import gpu_memory_gib
from .preflight.rows import RowCensus, count_rows, holdout_shares

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
DESCRIBE = "Describe what happens in the video."  # the question about a video whose sidecar is a caption
ENOUGH_TO_COMPARE = 200
"""Fewer test questions can hardly show that one model is better than another: the interval of an accuracy is wider than
± 0.07."""
_ROWS_PER_SHARD = 2000


@dataclass(frozen=True)
class Layer:
    """A line of the file, or several: the YAML of a key, and why."""

    text: str
    why: str = ""


@dataclass(frozen=True)
class Draft:
    """A configuration for a person's rows, as text, and what was understood of the rows."""

    text: str
    report: FileReport
    census: RowCensus


def rows_of_folder(folder: Path, target: Path) -> int:
    """Write rows for the videos of a folder whose sidecar says something: ``clip.txt`` is a caption, ``clip.json`` a
    row or a list of rows without their video. Returns their number.

    Raises:
        UserError: no video, or none with a sidecar."""
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise UserError(f"{folder}: no videos in it ({', '.join(VIDEO_SUFFIXES)})")
    rows = [row for video in videos for row in _of_sidecar(video, target)]
    if not rows:
        raise UserError(
            f"{folder}: {len(videos)} videos, and nothing that says what is in them; put {videos[0].stem}.txt (a "
            f"caption) or {videos[0].stem}.json (question, answer, options) beside {videos[0].name}, or give a table: "
            "--rows rows.csv"
        )
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return len(rows)


def _of_sidecar(video: Path, target: Path) -> Iterator[dict[str, Any]]:
    path = os.path.relpath(video.absolute(), target.absolute().parent)
    if (caption := video.with_suffix(".txt")).is_file():
        yield {"video": path, "question": DESCRIBE, "answer": " ".join(caption.read_text("utf-8").split())}
    if (rows := video.with_suffix(".json")).is_file():
        try:
            value = json.loads(rows.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{rows}: not JSON ({error})") from None
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, Mapping):
                raise UserError(f"{rows}: expected a row, or a list of rows, got {type(row).__name__}")
            yield {"video": path, **row}


def draft(
    name: str, source: str, preset: str | None = None, columns: Columns | None = None, storage: Storage | None = None
) -> Draft:
    """The configuration for rows.

    Args:
        source: the rows, as ``data.source`` will name them.
        preset: to extend; None: ``laptop`` without a GPU, else that of the paper whose responses the rows have.

    Raises:
        UserError: the rows cannot be read, or none of them can be used."""
    changes = [f"data.source={json.dumps(source)}", f"data.columns={json.dumps(columns or {})}"]
    report, census = count_rows(load("laptop", changes), storage)
    if not report.rows or report.bad == report.rows:
        why = f"; line {report.problems[0].line}: {report.problems[0].detail}" if report.problems else ""
        raise UserError(f"{source}: no row can be used{why} (vthink data validate {source})")
    good, small = report.rows - report.bad, preset or ("video_r1_7b" if gpu_memory_gib() else "laptop")
    segments = census.with_evidence == good
    if preset is None and small == "video_r1_7b" and segments:
        small = "video_thinker_7b"
    base = load(small)
    layers = [
        Layer(f"extends: {small}", f"vthink config show --preset {small}: every setting, with a comment"),
        Layer(f"name: {name}", "begins the names of runs"),
        *_data_layers(source, base, report, census, columns),
        *_training_layers(base, census, good, segments, tiny=base.model.name == "tiny"),
        *_evaluation_layers(base, census, good),
    ]
    return Draft(_text(source, layers), report, census)


def _text(source: str, layers: list[Layer]) -> str:
    lines = [f"# Written by `vthink init` for {source}; yours to edit.", ""]
    for layer in layers:
        first, *rest = layer.text.split("\n")
        if not first.startswith(" ") and lines[-1] and not lines[-1].startswith(("extends", "name")):
            lines.append("")
        lines += [f"{first:<40}  # {layer.why}" if layer.why else first, *rest]
    return "\n".join(lines) + "\n"


def _data_layers(
    source: str, base: Config, report: FileReport, census: RowCensus, columns: Columns | None
) -> Iterator[Layer]:
    good = report.rows - report.bad
    yield Layer("data:")
    yield Layer(f"  source: {json.dumps(source, ensure_ascii=False)}", _row_counts(report))
    if columns:
        yield Layer(f"  columns: {json.dumps(columns, ensure_ascii=False)}", "which column is which field")
    missing = [split for split in ("validation", base.evaluation.split) if not census.rows[split]]
    shares = holdout_shares(census.files, missing) if missing else {}
    if shares is None:
        raise UserError(
            f"{source}: {len(census.files)} videos are too few to hold some out for validation and test; bring ten "
            "or more"
        )
    shares = dict.fromkeys(base.data.holdout, 0.0) | shares
    listed = ", ".join(f"{split}: {share:g}" for split, share in sorted(shares.items()))
    why = "shares of the videos; a video is in one split only" if any(shares.values()) else "the rows say their split"
    yield Layer(f"  holdout: {{{listed}}}", why)
    yield Layer(f"  shards: {max(1, min(64, good // _ROWS_PER_SHARD))}", "parts prepared side by side; at most")
    if report.bad > base.data.max_quarantined * report.rows:
        share = min(1.0, report.bad / report.rows + 0.05)
        yield Layer(f"  max_quarantined: {share:.2f}", f"{report.bad} rows have mistakes (vthink data validate)")
    if base.data.min_video_frames > 1:
        yield Layer("  min_video_frames: 1", f"{base.data.min_video_frames} in the paper")


def _row_counts(report: FileReport) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(report.by_type.items()))
    return f"{report.rows} rows{'' if report.whole else ' and more'}: {kinds}"


def _training_layers(base: Config, census: RowCensus, good: int, segments: bool, tiny: bool) -> Iterator[Layer]:
    reasoned = census.with_reasoning + census.with_evidence > 0 and (segments or census.with_reasoning == good)
    train = max(1, census.rows["train"] * 7 // 10)
    batch = next(size for size in (64, 32, 16, 8, 4, 2, 1) if size <= max(1, train // 2))
    if tiny and reasoned and not segments:
        yield Layer("model:")
        yield Layer("  prompt: video_r1/1", "the rows reason in plain words: <think>…</think><answer>…</answer>")
    yield Layer("sft:")
    if not reasoned:
        yield Layer("  enabled: false", "the rows have no reasoning to learn; vthink data curate has some written")
    elif tiny:
        yield Layer(f"  batch_size: {batch}")
        if train < 2000:
            yield Layer("  max_steps: 60", "enough to see it work; -1: num_epochs decides")
    if tiny and reasoned:
        yield Layer("  stop_at_accuracy: null", "to the end")
    yield Layer(f"  validation: {{every_steps: {20 if tiny else 50}, kinds: []}}", "every kind of question")
    yield Layer("grpo:")
    yield Layer("  kinds: []", "every kind of question")
    if tiny:
        yield Layer(f"  prompts_per_step: {min(16, batch)}", "times num_generations completions")
    if train < 2000:
        steps = 20 if tiny else 200
        yield Layer(f"  max_steps: {steps}", "enough to see it work; a paper's are 1,000 and more")
        yield Layer(f"  save_every_steps: {steps // 2}", "and validated as often")
        yield Layer(f"  validation: {{every_steps: {steps // 2}, kinds: []}}")
    else:
        yield Layer(f"  validation: {{every_steps: {base.grpo.save_every_steps}, kinds: []}}")
    if not tiny:
        gpus = len(gpu_memory_gib())
        yield Layer("launch:")
        yield Layer(f"  processes: {max(1, gpus)}", "one per GPU" if gpus else "GPUs of a node of the cluster")


def _evaluation_layers(base: Config, census: RowCensus, good: int) -> Iterator[Layer]:
    test = census.rows[base.evaluation.split] or good // 10
    yield Layer("evaluation:")
    if test < ENOUGH_TO_COMPARE:
        yield Layer("  gate:", "what a model must reach to go into service; with so few test questions, only:")
        yield Layer("    - {metric: accuracy, not_worse_than: champion, by: 0.1}")
        yield Layer(f"    # with {ENOUGH_TO_COMPARE} and more also: - {{metric: accuracy, above: base}}")
    else:
        yield Layer("  gate:", "what a model must reach to go into service")
        yield Layer("    - {metric: format_rate, at_least: 0.9}")
        yield Layer("    - {metric: accuracy, above: base}")
        yield Layer("    - {metric: accuracy, not_worse_than: champion, by: 0.02}")
    yield Layer("deployment:")
    yield Layer("  smoke_kinds: []", "any question may test the served model")
