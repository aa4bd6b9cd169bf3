"""Samples written as other people publish them: the way back from `components.data_prep.formats`, for round trips.

What a format has no field for is lost.
"""

from __future__ import annotations

import csv
import json
import posixpath
import string
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vthink.components.common.answers.responses import format_span, parse_response
from vthink.components.common.rows.files import to_line
from vthink.components.common.rows.sample import Sample
from vthink.components.data_prep.formats.read import NESTED


def _plain(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        row = json.loads(to_line(sample))
        media = row.pop("media")
        yield {**row, media["kind"]: media["uri"], **{k: media[k] for k in ("start_s", "end_s") if k in media}}


def _video_r1(samples: Iterable[Sample], with_ids: bool = True) -> Iterator[dict[str, Any]]:
    names = {"multiple_choice": "multiple choice", "free_form": "free-form", "ocr": "OCR"}
    for sample in samples:
        reasoning = sample.reasoning
        if reasoning is not None and not parse_response(reasoning).segments:
            reasoning = f"<think>{reasoning}</think>"
        yield {
            **({"problem_id": int(sample.id) if sample.id.isdecimal() else sample.id} if with_ids else {}),
            "problem": sample.question,
            "data_type": sample.media.kind,
            "problem_type": names.get(sample.problem_type, sample.problem_type),
            "options": [f"{a}. {o}" for a, o in zip(string.ascii_uppercase, sample.options, strict=False)],
            "solution": f"<answer>{sample.answer}</answer>",
            "path": sample.media.uri if posixpath.isabs(sample.media.uri) else f"./{sample.media.uri}",
            "data_source": sample.source,
            **({"process": reasoning} if reasoning is not None else {}),
            **sample.metadata,
        }


def _vrbench(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    videos: dict[str, dict[str, Any]] = {}
    for sample in samples:
        video = str(sample.metadata["video_id"])
        row = videos.setdefault(video, {"video_id": video, "video_path": sample.media.uri, "mcq": {}})
        steps = {e.caption: format_vrbench_span(e.start_s, e.end_s) for e in sample.evidence}
        texts = (sample.reasoning or "").splitlines()
        row["mcq"][sample.id.removeprefix(f"{video}-")] = {
            "question": sample.question,
            "options": dict(zip(string.ascii_uppercase, sample.options, strict=False)),
            "answer": sample.answer,
            "reasoning_process": {str(n): f"{text} {steps.get(text, '')}".strip() for n, text in enumerate(texts, 1)},
            "reasoning_type": sample.metadata["kind"],
        }
    yield from videos.values()


def format_vrbench_span(start_s: float, end_s: float) -> str:
    """``[00:07:44->00:08:28]``."""
    start, _, end = format_span(int(start_s) + 3600, int(end_s) + 3600).partition("-")
    hours = [f"{int(point[:2]) - 1:02d}{point[2:]}" for point in (start, end)]
    return f"[{hours[0]}->{hours[1]}]"


WRITERS: dict[str, Callable[[Iterable[Sample]], Iterator[dict[str, Any]]]] = {
    "vthink": lambda samples: (json.loads(to_line(sample)) for sample in samples),
    "video_r1": _video_r1,
    "video_thinker": partial(_video_r1, with_ids=False),
    "vrbench": _vrbench,
    "plain": _plain,
}
"""The rows of samples, by the name of the format."""


def write_rows(path: Path, samples: Iterable[Sample], format_name: str) -> int:
    """Write samples as a file of another format (JSON list, JSONL, Parquet or CSV by the file's name); their number."""
    rows = list(WRITERS[format_name](samples))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if k in NESTED else v for k, v in row.items()} for row in rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("[\n" + ",\n".join(lines) + "\n]" if path.suffix == ".json" else "\n".join(lines) + "\n")
    return len(rows)
