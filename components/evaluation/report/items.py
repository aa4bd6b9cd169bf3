"""Every item, to browse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...common.answers.responses import parse_response
from ...common.html import images, page
from ..answers import one_line
from ..conditions import frame_order, seed_of
from ..config import EvaluationConfig
from ..expressions import FRAMES
from .tables import _FRAMES, Frames, _Set

_MAX_RESPONSE_CHARS = 2_000
"""So much of a response is in the page at most; all of it is in ``items.jsonl``."""


_MAX_RESPONSES_CHARS = 12 * 2**20
"""Responses of all items together: with many items less of each is shown."""


_MAX_MEDIA_BYTES = 24 * 2**20
"""Pictures of all items together."""


_FRAME_HEIGHT = 144


def _outcome(row: Mapping[str, Any]) -> str:
    return "failed" if row["error"] is not None else "right" if row["correct"] else "wrong"


def _browser(sets: Sequence[_Set], models: Sequence[str], frames: Frames | None, config: EvaluationConfig) -> Markup:
    """Every item as data, and the place where the page's script shows them."""
    items: list[dict[str, Any]] = []
    responses = sum(len(rows) for one in sets for (_, frames), rows in one.rows.items() if frames == "ordered")
    limit = max(200, min(_MAX_RESPONSE_CHARS, _MAX_RESPONSES_CHARS // max(1, responses)))
    for one in sets:
        entries: dict[str, dict[str, Any]] = {}
        for model in models:
            for condition in FRAMES:
                for row in one.rows.get((model, condition), ()):
                    entry = entries.get(row["id"])
                    if entry is None:
                        entry = entries[row["id"]] = _entry(one, row)
                    entry["said"].setdefault(model, {})[condition] = _said(row, condition, limit)
        items += entries.values()
    media = _media(sets, models, items, frames, config) if frames is not None else {}
    data = {
        "models": list(models),
        "frames": _FRAMES,
        "sets": [{"key": one.key, "title": one.title} for one in sets],
        "items": items,
        "media": media,
        "noframes": "no pictures: left out to keep the page small" if media else "no pictures in this report",
    }
    return page.embedded_json("items", data) + Markup(
        '<div class="browser" data-browser><p class="soft">The item browser needs JavaScript.</p></div>'
    )


def _entry(one: _Set, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "set": one.key,
        "video": row["video"],
        "clip": f"{one.key}/{row['video']} {row.get('clip')}",
        "kind": row["kind"] or row["problem_type"],
        "question": str(row.get("question", ""))[:_MAX_RESPONSE_CHARS],
        "options": [str(option)[:500] for option in row.get("options", ())][:26],
        "truth": str(row.get("truth", ""))[:500],
        "evidence": [[start, end, caption[:200]] for start, end, caption in row.get("evidence", ())],
        "duration": row.get("duration_s") or 0,
        "said": {},
    }


def _said(row: Mapping[str, Any], condition: str, limit: int) -> dict[str, Any]:
    """o: outcome, a: answer, g: grade; in order also r: response, s: segments; e: error."""
    found: dict[str, Any] = {"o": _outcome(row), "g": round(float(row["metrics"].get("score", row["correct"])), 3)}
    if row["answer"] is not None:
        found["a"] = row["answer"][:200]
    if row["error"] is not None:
        found["e"] = row["error"][:300]
    response = row["response"] or ""
    if condition == "ordered" and response:
        found["r"] = response[:limit]
        if len(response) > limit:
            found["cut"] = f"first {limit:,} of {len(response):,} characters"
        elif row.get("finish_reason") == "length":
            found["cut"] = "cut off at the longest length"
        segments = parse_response(response).segments[:50]
        if segments:
            found["s"] = [[s.start_s, s.end_s, s.caption[:200]] for s in segments]
    return found


def _media(
    sets: Sequence[_Set],
    models: Sequence[str],
    items: Sequence[dict[str, Any]],
    frames: Frames,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Pictures of some videos, each once, for `config.report_items` items; sets ``media`` of every item about them."""
    by_set = {one.key: one for one in sets}
    media: dict[str, Any] = {}
    used = 0
    for item in _chosen(items, models[-1], config):
        name = item["clip"]
        row = next(
            row
            for model in models
            if (model, "ordered") in by_set[item["set"]].rows
            for row in by_set[item["set"]].rows[model, "ordered"]
            if row["id"] == item["id"]
        )
        try:
            clip = frames(row)
        except Exception as error:  # the item failed for the same reason; the page is for seeing that
            item["noframes"] = f"no pictures: {one_line(error)}"
            continue
        if clip is None or used > _MAX_MEDIA_BYTES:
            continue
        if name not in media:
            pictures = [page.data_uri(images.jpeg(frame, _FRAME_HEIGHT, 75)) for frame in clip.frames]
            used += sum(map(len, pictures))
            times = [round(float(t), 3) for t in clip.times_s]
            media[name] = {"frames": pictures, "times": times, "duration": float(clip.duration_s)}
        if clip.kind == "video" and any("shuffled" in said for said in item["said"].values()):
            order = frame_order(item["id"], len(clip.frames), by_set[item["set"]].seed)
            item["order"] = [int(place) for place in order]
    for item in items:
        if item["clip"] in media:
            item["media"] = item["clip"]
    return media


def _chosen(items: Sequence[dict[str, Any]], candidate: str, config: EvaluationConfig) -> list[dict[str, Any]]:
    """Items to show with pictures: every kind of question with every outcome in turn, drawn by the seed."""
    order = sorted(items, key=lambda item: seed_of(config.seed, "shown", item["id"]))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for item in order:
        said = item["said"].get(candidate, {}).get("ordered", {"o": ""})
        groups.setdefault((item["set"], item["kind"], said["o"]), []).append(item)
    turns = [(turn, number) for number, g in enumerate(groups.values()) for turn in range(len(g))]
    listed = list(groups.values())
    return [listed[number][turn] for turn, number in sorted(turns)[: config.report_items]]
