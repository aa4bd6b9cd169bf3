"""A question, and the captioned segments that it is about."""

from __future__ import annotations

import json
from pathlib import Path

from vthink.components.common.rows.sample import Evidence, Media, Sample

MEDIA = Media(kind="video", uri="/videos/a.mp4")
SEGMENTS = (
    Evidence(start_s=0.0, end_s=4.0, caption="A man picks up a ball."),
    Evidence(start_s=3.5, end_s=9.25, caption="He throws it."),
)
CHOICE = Sample(
    id="a",
    media=MEDIA,
    question="What does he do with the ball?",
    options=("keeps it", "throws it"),
    problem_type="multiple_choice",
    answer="B",
)


def captions(folder: Path, videos: object) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps(videos))
    return path
