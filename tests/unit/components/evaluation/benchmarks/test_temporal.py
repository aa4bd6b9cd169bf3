"""Temporal grounding: spans are read, and graded as an independent count of hundredths of seconds says."""

import random
import statistics

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.scores import estimates

from ..published import Published
from .reading import RESAMPLING, graded, read

CAPTIONS = {"v1": {"duration": 9.0, "timestamps": [[1.5, 4.0], [6.0, 5.0]], "sentences": ["A man sits.", "He stands."]}}


def counted_iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """By counting hundredths of seconds."""
    one, two = (set(range(round(100 * start), round(100 * end))) for start, end in (first, second))
    return len(one & two) / len(one | two)


def test_scores_of_charades_sta_equal_an_independent_count_over_240_answers(tmp_path):
    rng = random.Random(0)
    lines, truths = [], []
    for number in range(240):
        start = rng.randrange(0, 150) / 10
        truths.append((start, start + rng.randrange(5, 150) / 10))
        lines.append(f"VID{number % 12} {start} {truths[-1][1]:.1f}##person does number {number}.")
    published = Published(videos={name: f"{name}.mp4" for name in [f"VID{n}" for n in range(12)] + ["missing"]})
    published.files["charades_sta_test.txt"] = lines
    found = read("charades-sta", published, tmp_path)
    assert len(found.samples) == 240
    assert "person does number 0." in found.samples[0].question
    said = [(start, start + rng.randrange(5, 150) / 10) for start in (rng.randrange(0, 150) / 10 for _ in truths)]
    shapes = ("{} - {}", "from {} to {} seconds", "{}s - {}s, and not 0 - 99")
    texts = [f"<answer>{rng.choice(shapes).format(start, round(end, 1))}</answer>" for start, end in said]
    ious = [counted_iou(*pair) for pair in zip(truths, said, strict=True)]
    items = graded(found.benchmark, found.samples, texts)
    scores = {name: e.value for name, e in estimates(found.benchmark.scores, items, RESAMPLING).items()}
    assert scores["answer_iou"] == pytest.approx(statistics.mean(ious), abs=1e-4)
    for percent in (30, 50, 70):
        expected = statistics.mean(iou >= percent / 100 for iou in ious)
        assert scores[f"answer_recall_at_{percent}"] == pytest.approx(expected, abs=0.01)
    assert [item.correct for item in items] == [item.score >= 0.5 for item in items]
    (silent,) = graded(found.benchmark, found.samples[:1], ["<answer>at the end</answer>"])
    assert silent.score == 0


def test_captioned_videos_are_read_by_video_and_turned_spans_are_turned_back(tmp_path):
    published = Published({"val_2.json": CAPTIONS}, videos={"v1": "v1.mp4", "x": "x.mp4"})
    found = read("activitynet-captions", published, tmp_path).samples
    assert [(s.id, [(e.start_s, e.end_s) for e in s.evidence]) for s in found] == [
        ("v1-0", [(1.5, 4.0)]),
        ("v1-1", [(5.0, 6.0)]),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spans": [[1, 2]]}, "field 'spans': expected lists 'spans' and 'queries' of one length"),
        ({"spans": [[1, 2], 3]}, r"field 'span': expected \[start, end\] of 'He stands.'"),
        ({"spans": None}, "field 'spans': expected lists"),
    ],
)
def test_a_video_of_timelens_that_is_not_as_expected_is_refused_by_name(tmp_path, change, said):
    data = {"spans": [[1.5, 4.0], [5.0, 6.0]], "queries": CAPTIONS["v1"]["sentences"], "duration": 9.0}
    names = {"v1": "v1.mp4", "x": "x.mp4"}
    whole = Published({"charades-timelens.json": {"v1": data}}, videos=names)
    assert len(read("timelens-bench", whole, tmp_path).samples) == 2
    with pytest.raises(UserError, match=f"charades-timelens.json, row 1, v1, {said}"):
        read("timelens-bench", Published({"charades-timelens.json": {"v1": data | change}}, videos=names), tmp_path)
