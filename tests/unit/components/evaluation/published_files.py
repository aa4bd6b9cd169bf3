"""Files of a benchmark in its published format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Published:
    """Files of a benchmark, and for each question what an independent computation needs."""

    files: dict[str, Any] = field(default_factory=dict)
    """Contents by name: rows, or an object."""
    truths: list[dict[str, Any]] = field(default_factory=list)
    """In the order of the questions: ``kind``, ``answer`` as it must be said, ``says`` (all that may be said)."""
    videos: dict[str, str] = field(default_factory=dict)
    """Name in the published layout, by video."""

    def write(self, folder: Path, sources: Sequence[Path] = ()) -> Path:
        """Write the annotation files, and put the videos in their places (as links; the last stays missing)."""
        for name, rows in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            elif path.suffix == ".txt":
                path.write_text("".join(line + "\n" for line in rows))
            elif path.suffix == ".jsonl":
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:
                path.write_text(json.dumps(rows))
        for place, source in zip(list(self.videos.values())[:-1], sources, strict=False):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).hardlink_to(source)
        return folder

    def add(self, kind: str, says: Sequence[str], answer: str, **more: Any) -> None:
        """Write down the truth of the next question."""
        self.truths.append({"kind": kind, "says": list(says), "answer": answer, **more})
