"""Sets of long videos and of temporal grounding, in their published formats."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from .published_files import Published


def _numbers(questions: int, videos: int) -> Iterator[tuple[str, list[int]]]:
    """Videos, each with the numbers of its questions."""
    for video in range(videos):
        yield f"long{video}", list(range(questions))[video::videos]


def lvbench(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for video, numbers in _numbers(questions, videos):
        found.videos[video] = f"all_videos/{video}.mp4"
        asked = []
        for number in numbers:
            kind, truth = rng.choice(["entity recognition", "reasoning"]), rng.choice("ABCD")
            text = f"Who, number {number} (of all)?\n(A) one\n(B) two\n(C) three\n(D) four"
            about = {"uid": str(number), "question": text, "answer": truth, "question_type": [kind]}
            asked.append(about | {"time_reference": rng.choice(["00:01-00:03", "00:02", ""])})
            found.add(kind, "ABCD", truth)
        rows.append({"key": video, "type": "sport", "video_info": {"duration_minutes": 60}, "qa": asked})
    found.files = {"video_info.meta.jsonl": rows}
    return found


def longvideobench(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for video, numbers in _numbers(questions, videos):
        found.videos[video] = f"videos/{video}.mp4"
        for number in numbers:
            kind, options = rng.choice(["S2E", "T3O"]), rng.choice([4, 5])
            place = rng.randrange(options)
            about = {"id": f"{video}_{number}", "video_id": video, "video_path": f"{video}.mp4"}
            about |= {"question": f"What, number {number}?", "candidates": [f"thing {n}" for n in range(options)]}
            about |= {"correct_choice": place, "question_category": kind, "duration_group": 600}
            rows.append(about | {"topic_category": "KG", "subtitle_path": f"{video}_en.json", "duration": 500.5})
            found.add(kind, "ABCDE"[:options], "ABCDE"[place])
    found.files = {"lvb_val.json": rows}
    return found


def mlvu(rng: random.Random, questions: int, videos: int) -> Published:
    found = Published()
    for task, kind, part in (("1_plotQA", "plotQA", questions // 3), ("4_count", "count", questions - questions // 3)):
        rows = []
        for video, numbers in _numbers(part, videos):
            found.videos[f"{task}/{video}"] = f"video/{task}/{kind}{video}.mp4"
            for number in numbers:
                options = ["up", "down", "left", "right"]
                truth = rng.choice(options)
                text = f"Where, number {number + (questions // 3 if task == '4_count' else 0)}?"
                about = {"video": f"{kind}{video}.mp4", "duration": 480.0, "question": text, "question_type": kind}
                rows.append(about | {"candidates": options, "answer": truth})
                found.add(kind, "ABCD", "ABCD"[options.index(truth)])
        found.files[f"json/{task}.json"] = rows
    return found


def _moment(rng: random.Random) -> tuple[float, float, str]:
    start = rng.randrange(0, 80) / 10
    end = round(start + rng.randrange(5, 60) / 10, 1)
    return start, end, f"{start} - {end}"


def charades_sta(rng: random.Random, questions: int, videos: int) -> Published:
    found, lines = Published(), []
    for video, numbers in _numbers(questions, videos):
        found.videos[video] = f"videos/{video}.mp4"
        for number in numbers:
            start, end, truth = _moment(rng)
            lines.append(f"{video} {start} {end}##person does number {number}.")
            found.add("span", ["50.0 - 60.0", "later"], truth)
    found.files = {"charades_sta_test.txt": lines}
    return found


def by_video(rng: random.Random, questions: int, videos: int, file: str, spans: str, queries: str) -> Published:
    found, rows = Published(), {}
    for video, numbers in _numbers(questions, videos):
        found.videos[video] = f"{video}.mp4"
        moments = [_moment(rng) for _ in numbers]
        rows[video] = {"duration": 20.0, spans: [[start, end] for start, end, _ in moments]}
        rows[video][queries] = [f" It is number {number}. " for number in numbers]
        for *_, truth in moments:
            found.add("span", ["50.0 - 60.0", "later"], truth)
    found.files = {file: rows}
    return found


LONG_FORMATS: dict[str, Callable[[random.Random, int, int], Published]] = {
    "lvbench": lvbench,
    "longvideobench": longvideobench,
    "mlvu": mlvu,
    "charades-sta": charades_sta,
    "activitynet-captions": partial(by_video, file="val_2.json", spans="timestamps", queries="sentences"),
    "timelens-bench": partial(by_video, file="qvhighlights-timelens.json", spans="spans", queries="queries"),
}
