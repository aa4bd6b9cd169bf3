"""Every item, to browse: data that the page's script shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ...common.answers.responses import parse_response
from ...common.html import images, page
from ..ask import one_line
from ..conditions import CONDITIONS, ORDERED, clip_key, condition_title, frame_order, seed_of
from ..config import EvaluationConfig
from ..item import Item
from .cells import Board

if TYPE_CHECKING:
    from ...common.video.clip import Clip
    from ..results import BenchmarkResult

Clips = Callable[[Item], "Clip | None"]  # the clip that an item was about; None where it cannot be had

_MAX_RESPONSE_CHARS = 2_000  # so much of a response is in the page at most; all of it is in ``items.jsonl``
_MAX_RESPONSES_CHARS = 3 * 2**20  # responses of all items together: with many items less of each is shown
_MAX_MEDIA_BYTES = 2**20  # pictures of all items together
_FRAME_HEIGHT = 144


@dataclass
class _Question:
    """One question with the items of all models and conditions."""

    key: str  # of its benchmark
    seed: int  # of the shuffled order of frames
    item: Item  # one of the items: what all of them say of the question
    items: dict[str, dict[str, Item]] = field(default_factory=dict)  # by model and condition
    pictures: dict[str, Any] = field(default_factory=dict)  # what the page needs to show its video

    @property
    def clip(self) -> str:
        return f"{self.key}/{clip_key(self.item.video, *self.item.clip)}"

    @property
    def kind(self) -> str:
        return self.item.kind or self.item.problem_type


def browser(board: Board, clips: Clips | None, config: EvaluationConfig) -> Markup:
    """Every item as data, and the place where the page's script shows them."""
    questions = _questions(board)
    ordered = sum(ORDERED in conditions for question in questions for conditions in question.items.values())
    limit = max(200, min(_MAX_RESPONSE_CHARS, _MAX_RESPONSES_CHARS // max(1, ordered)))
    media = _media(questions, board.models[-1], clips, config) if clips is not None else {}
    data = {
        "models": board.models,
        "frames": {name: condition_title(name) for name in CONDITIONS},
        "sets": [{"key": key, "title": title} for key, title in board.titles.items()],
        "items": [_entry(question, limit) for question in questions],
        "media": media,
        "noframes": "no pictures: left out to keep the page small" if media else "no pictures in this report",
    }
    return page.embedded_json("items", data) + Markup(
        '<div class="browser" data-browser><p class="soft">The item browser needs JavaScript.</p></div>'
    )


def _questions(board: Board) -> list[_Question]:
    questions: dict[tuple[str, str], _Question] = {}
    for result in board.firsts:
        for condition in CONDITIONS:
            for item in result.items.get(condition, ()):
                made = _Question(result.key, result.result.settings.seed, item)
                question = questions.setdefault((result.key, item.id), made)
                question.items.setdefault(result.model, {})[condition] = item
    return list(questions.values())


def _entry(question: _Question, limit: int) -> dict[str, Any]:
    item = question.item
    return {
        "id": item.id,
        "set": question.key,
        "video": item.video,
        "name": item.video_name,
        "kind": question.kind,
        "question": item.question[:_MAX_RESPONSE_CHARS],
        "options": [option[:500] for option in item.options][:26],
        "truth": item.truth[:500],
        "evidence": [[start, end, caption[:200]] for start, end, caption in item.evidence],
        "duration": item.duration_s,
        "answers": {
            model: {condition: _answer(item, limit) for condition, item in items.items()}
            for model, items in question.items.items()
        },
        **question.pictures,
    }


def _answer(item: Item, limit: int) -> dict[str, Any]:
    """o: outcome, a: answer, g: grade; in order also r: response, s: segments; e: error."""
    entry: dict[str, Any] = {"o": item.outcome, "g": round(item.metrics.get("score", float(item.correct)), 3)}
    if item.answer is not None:
        entry["a"] = item.answer[:200]
    if item.error is not None:
        entry["e"] = item.error[:300]
    response = item.response or ""
    if item.condition == ORDERED and response:
        entry["r"] = response[:limit]
        if len(response) > limit:
            entry["cut"] = f"first {limit:,} of {len(response):,} characters"
        elif item.finish_reason == "length":
            entry["cut"] = "cut off at the longest length"
        segments = parse_response(response).segments[:50]
        if segments:
            entry["s"] = [[s.start_s, s.end_s, s.caption[:200]] for s in segments]
    return entry


def _media(questions: Sequence[_Question], candidate: str, clips: Clips, config: EvaluationConfig) -> dict[str, Any]:
    """Pictures of some videos, each once, for `config.report_items` questions, and for all others about them."""
    media: dict[str, Any] = {}
    used = 0
    for question in _chosen(questions, candidate, config):
        try:
            clip = clips(question.item)
        except Exception as error:  # the item failed for the same reason; the page is for seeing that
            question.pictures["noframes"] = f"no pictures: {one_line(error)}"
            continue
        if clip is None or used > _MAX_MEDIA_BYTES:
            continue
        if question.clip not in media:
            pictures = [page.data_uri(images.jpeg(frame, _FRAME_HEIGHT, 75)) for frame in clip.frames]
            used += sum(map(len, pictures))
            times = [round(float(t), 3) for t in clip.times_s]
            media[question.clip] = {"frames": pictures, "times": times, "duration": float(clip.duration_s)}
        if clip.kind == "video" and any("shuffled" in conditions for conditions in question.items.values()):
            key = clip_key(question.item.video, *question.item.clip)
            question.pictures["order"] = [int(place) for place in frame_order(key, len(clip.frames), question.seed)]
    for question in questions:
        if question.clip in media:
            question.pictures["media"] = question.clip
    return media


def _chosen(questions: Sequence[_Question], candidate: str, config: EvaluationConfig) -> list[_Question]:
    """Questions to show with pictures: every kind with every outcome in turn, drawn by the seed."""
    groups: dict[tuple[str, str, str], list[_Question]] = {}
    for question in sorted(questions, key=lambda question: seed_of(config.seed, "shown", question.item.id)):
        item = question.items.get(candidate, {}).get(ORDERED)
        groups.setdefault((question.key, question.kind, item.outcome if item else ""), []).append(question)
    turns = [(turn, number) for number, group in enumerate(groups.values()) for turn in range(len(group))]
    listed = list(groups.values())
    return [listed[number][turn] for turn, number in sorted(turns)[: config.report_items]]


NUM_FRAMES = 16  # shown of a video, whatever the model was shown


@contextmanager
def folder_clips(results: Sequence[BenchmarkResult]) -> Iterator[Clips]:
    """Gives clips of items, read in a worker process that hostile files cannot harm; None where the folder
    of the benchmark is no longer there."""
    from ...common.video.config import VideoConfig
    from ...common.video.workers import Decoder

    folders = [data for result in results if (data := result.result.data) and not data.startswith("s3://")]
    roots = [Path(data).resolve() for data in dict.fromkeys(folders) if Path(data).is_dir()]
    with Decoder(VideoConfig(num_frames=NUM_FRAMES, max_pixels=256 * 28 * 28)) as decoder:

        def clip(item: Item) -> Clip | None:
            name = Path(item.video)
            inside = ".." not in name.parts and not name.is_absolute()  # a name may not lead out of the folder
            path = next((root / name for root in roots if inside and (root / name).is_file()), None)
            return None if path is None else decoder.read(path, "video", *item.clip)

        yield clip
