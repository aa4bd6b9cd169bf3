"""Footage that others filmed and encoded, on both of its ways to a model: prepared, and sent to the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from vthink.components.common.video.clip import Clip, stored
from vthink.components.common.video.decode import read_clip
from vthink.components.deployment.server.clips import ClipReader

from ..common.video.corpus import filmed
from .conftest import Run, make_row, write_rows


def test_what_was_filmed_is_prepared_and_served_with_the_same_frames(run: Run, tmp_path: Path) -> None:
    paths = filmed()
    assert len(paths) == 4
    parts: list[tuple[float | None, float | None]] = [(None, None), (1.0, 3.5)]
    shown = [(path, part) for path in paths for part in parts]
    rows = [
        make_row(number, str(path), media={"kind": "video", "uri": str(path), "start_s": start_s, "end_s": end_s})
        for number, (path, (start_s, end_s)) in enumerate(shown)
    ]
    manifest = run(str(write_rows(tmp_path / "rows.jsonl", rows)), store="frames")
    prepared = {row.sample.id: row.clip for row in run.open(manifest, tmp_path / "cache").split("train")}
    assert len(prepared) == len(rows) == 8

    async def served() -> list[Clip]:
        reader = ClipReader(run.video, decoders=1, max_bytes=2**24, max_age_s=60.0)
        try:
            return [(await reader.read(path.read_bytes(), "user", "video", *part))[0] for path, part in shown]
        finally:
            reader.close()

    for number, ((path, part), answer) in enumerate(zip(shown, asyncio.run(served()), strict=True)):
        own = stored(read_clip(path, run.video, "video", *part), run.video)
        for clip in (prepared[f"row-{number}"], answer):
            assert (clip.frames == own.frames).all()
            assert clip.times_s.tolist() == own.times_s.tolist()
        assert own.frames.std(axis=(1, 2, 3)).min() > 10  # pictures, not one colour
