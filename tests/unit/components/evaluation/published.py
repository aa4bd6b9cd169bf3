"""Benchmarks in their published formats, with the odd rows of the real files, and the truth written down apart."""

from __future__ import annotations

import random
import statistics
import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .published_files import Published
from .published_long import LONG_FORMATS

LETTERS = string.ascii_uppercase


def video_holmes(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for number in range(questions):
        video = f"film{number % videos}"
        found.videos[video] = f"videos/{video}.mp4"
        options: dict[str, str | None] = {letter: f"clue {letter} of {number}" for letter in "ABCDEF"}
        kind = rng.choice(["SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI"])
        if number % 5 == 1:
            options["C"] = None
        if number % 5 == 2:
            del options["B"]
        left = [letter for letter in options if options[letter] is not None]
        truth = rng.choice(left)
        written = {0: truth, 1: f"{truth}. {options[truth]}", 2: f"({truth})", 3: f"{truth}: as the film shows"}
        rows.append(
            {
                "video ID": video,
                "Question ID": number // videos,
                "Question Type": kind,
                "Question": f"What happened, number {number}?",
                "Options": options,
                "Answer": written[number % 4],
                "Explanation": "because",
            }
        )
        found.add(kind, LETTERS[: len(left)], LETTERS[left.index(truth)])
    found.files = {"test_Video-Holmes.json": rows}
    return found


def cg_bench(rng: random.Random, questions: int, videos: int, reasoning: bool = False) -> Published:
    found, rows = Published(), []
    kinds = ["Entity Perception", "Entity Cognition", "Time Cognition", "Hallucination"]
    for number in range(questions):
        video = f"BV{number % videos}"
        found.videos[video] = f"cg_videos_720p/{video}.mp4"
        options = [f"thing {letter}" for letter in LETTERS[: rng.randint(5, 8)]]
        if number % 7 == 3:
            options[4] = options[0]  # the published file has such rows
        kind, truth = kinds[number // videos % 4], rng.randrange(len(options))
        clues = [[start, start + rng.randint(1, 3)] for start in sorted(rng.sample(range(0, 40, 4), rng.randint(1, 3)))]
        rows.append(
            {
                "qid": number,
                "video_uid": video,
                "question": f"What is it, number {number}?",
                "answer": options[truth],
                "choices": options,
                "right_answer": LETTERS[truth],
                "clue_intervals": clues,
                "domain": "Life Record",
                "sub_category": kind,
                "duration": 50,
            }
        )
        if not reasoning or kind.endswith("Cognition"):
            found.add(kind, LETTERS[: len(options)], LETTERS[truth], clues=clues)
    found.files = {"cgbench.json": rows}
    return found


def vrbench(rng: random.Random, questions: int, videos: int, summary: bool = False) -> Published:
    found, rows, number = Published(), [], 0
    for place in range(videos):
        video = f"yt_{place}"
        found.videos[video] = f"VRBench/videos/v001/{video}.mp4"
        mcq = {}
        for key in range(-(-(questions - place) // videos)):
            number += 1
            truth = rng.choice("ABCD")
            steps = {"1": f"She enters the room [00:00:0{key % 3}->00:00:0{key % 3 + 2}].", "2": "And so it follows"}
            mcq[f"qa{key + 1}"] = {
                "question": f"Why, number {number}?",
                "options": {letter: f"{letter} reason {number}" for letter in "ABCD"},
                "answer": truth if key % 2 else f"{truth}.",
                "reasoning_process": steps if key % 3 else {},
                "reasoning_type": "Counting Porblems" if key % 2 else "Event Prediction",
            }
            found.add("Counting Porblems" if key % 2 else "Event Prediction", "ABCD", truth)
        path = f"VRBench/videos/v001/{video}.mp4"
        rows.append({"video_id": video, "video_path": path, "video_summary": "A story.", "mcq": mcq})
    found.files = {"VRBench_eval.jsonl": rows}
    return found


def videommmu(rng: random.Random, questions: int, videos: int) -> Published:
    found = Published()
    tracks: dict[str, list[dict[str, Any]]] = {"Perception": [], "Comprehension": [], "Adaptation": []}
    for number in range(questions):
        track = list(tracks)[number * 3 // questions]
        video = f"validation_Art_Theory_{number % videos}"
        found.videos[video] = f"Art/{video}.mp4"
        row: dict[str, Any] = {"id": video, "question": f"Which, number {number}?", "options": [], "answer": ""}
        if track == "Adaptation" and number % 4 == 0:
            answer = f"{rng.randint(1, 9)}.50" if number % 8 else "a red herring"
            row |= {"question_type": "open", "answer": answer}
            found.add(track, [answer, "0.25"], answer)
        else:
            count = rng.randint(4, 10)
            texts = [f"note {number} {letter}" for letter in LETTERS[:count]]
            if number % 3 == 0:
                texts = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
            truth = rng.choice(LETTERS[:count])
            row |= {"question_type": "multiple-choice", "options": texts, "answer": truth}
            found.add(track, LETTERS[:count], truth)
        tracks[track].append(row)
    found.files = {f"{track}/test-00000-of-00001.parquet": rows for track, rows in tracks.items()}
    order = [truth for track in sorted(tracks) for truth in found.truths if truth["kind"] == track]
    found.truths = order  # files are read in the order of their names
    return found


VSI_KINDS = {
    "object_rel_direction_easy": 2,
    "object_rel_direction_medium": 3,
    "object_rel_direction_hard": 4,
    "object_rel_distance": 4,
    "route_planning": 4,
    "obj_appearance_order": 4,
    "object_abs_distance": 0,
    "object_counting": 0,
    "object_size_estimation": 0,
    "room_size_estimation": 0,
}


def vsi_bench(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for number in range(questions):
        scene = f"scene{number % videos:04d}_00"
        found.videos[scene] = f"scannet/{scene}.mp4"
        kind = list(VSI_KINDS)[number % len(VSI_KINDS)]
        row = {"id": number, "dataset": "scannet", "scene_name": scene, "question_type": kind}
        row |= {"question": f"Where, number {number}?", "options": None}
        if count := VSI_KINDS[kind]:
            truth = rng.choice(LETTERS[:count])
            row |= {"options": [f"{letter}. place {letter}" for letter in LETTERS[:count]], "ground_truth": truth}
            found.add(kind, LETTERS[:count], truth)
        else:
            truth = str(rng.randint(1, 9)) if kind == "object_counting" else f"{rng.randint(10, 99) / 10}"
            row["ground_truth"] = truth if number % 2 else float(truth)
            exact = [10, 5, 2, 1.5, 1.25, 1.2, 1.1, 1.05, 1, 0.95, 0.9, 0.5, 0.33, -1]
            says = [f"{float(truth) * factor:.6g}" for factor in exact]  # many on a threshold exactly
            found.add(kind, [*says, "none", "about two", ""], truth)
        rows.append(row)
    found.files = {"test.jsonl": rows}
    return found


def mmvu(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for number in range(questions):
        video = f"{number % videos}"
        found.videos[video] = f"videos/Art/{video}.mp4"
        row: dict[str, Any] = {
            "id": f"validation_{number}",
            "video": f"https://example.org/datasets/mmvu/resolve/main/videos/Art/{video}.mp4",
            "metadata": {"subject": "Art"},
            "question": f"Which technique, number {number}?",
        }
        if number % 3 == 0:
            answer = ["Dolly Zoom", "41", "force majeure"][number // 3 % 3]
            choices = dict.fromkeys("ABCDE", "")
            row |= {"question_type": "open-ended", "choices": choices, "answer": answer}
            found.add("open_ended", [answer, "pacinian corpuscle"], answer)
        else:
            truth = rng.choice("ABCDE")
            choices = {letter: f"way {letter}" for letter in "ABCDE"}
            row |= {"question_type": "multiple-choice", "choices": choices, "answer": truth}
            found.add("multiple_choice", "ABCDE", truth)
        rows.append(row)
    found.files = {"validation.json": rows}
    return found


def mvbench(rng: random.Random, questions: int, videos: int) -> Published:
    found = Published()
    folders = {
        "action_antonym": "ssv2_video",
        "action_sequence": "star/Charades_v1_480",
        "moving_count": "clevrer/video_validation",
    }
    files: dict[str, list[dict[str, Any]]] = {f"json/{task}.json": [] for task in folders}
    for task, folder in folders.items():
        for place in range(questions // 3):
            number = len(found.truths)
            video = f"{place % videos:05d}.mp4"  # the same names in every folder, as published
            found.videos[f"{task}/{video}"] = f"video/{folder}/{video}"
            options = ["not sure", "2", "1"] if task == "moving_count" else ["Opened it.", "Closed it.", "not sure"]
            rng.shuffle(options)
            truth = rng.randrange(3)
            row: dict[str, Any] = {"video": video, "question": f"What, number {number}?", "candidates": options}
            row["answer"] = options[truth] if number % 2 else options[truth].rstrip(".")
            if task == "moving_count" and place == 1:  # counterfactual_inference has five such rows
                row["candidates"], truth = [row["answer"]], 0
            if task == "action_sequence":
                row |= {"start": 0.5, "end": 2.5}
            files[f"json/{task}.json"].append(row)
            found.add(
                task,
                LETTERS[: len(row["candidates"])],
                LETTERS[truth],
                clip=(0.5, 2.5) if task == "action_sequence" else (None, None),
            )
    found.files = files
    return found


def tempcompass(rng: random.Random, questions: int, videos: int) -> Published:
    found = Published()
    files: dict[str, dict[str, Any]] = {}
    tasks = ("caption_matching", "captioning", "multi-choice", "yes_no")
    dims = ("action", "speed")
    for task in tasks:
        content: dict[str, Any] = {}
        for place in range(videos):
            video = f"10{place}"
            found.videos[video] = f"videos/{video}.mp4"
            for dim in dims:
                asked = []
                for number in range(max(1, questions // len(tasks) // videos // len(dims))):
                    asked.append(_tempcompass(task, dim, number, rng, found))
                content.setdefault(video, {})[dim] = asked
        files[f"questions/{task}.json"] = content
    found.files = files
    return found


def _tempcompass(task: str, dim: str, number: int, rng: random.Random, found: Published) -> dict[str, str]:
    asked = f"number {len(found.truths)}"
    actions = ["running fast", "jumping high", "sitting down", "reading aloud"]
    rng.shuffle(actions)
    truth = rng.randrange(3)
    if task == "yes_no":
        answer = rng.choice(["yes", "no"])
        found.add("yes_no", ["yes", "No.", "Yes, it is", "no", "perhaps", "yes or no"], answer, dim=dim)
        return {"question": f"Is it {actions[0]}, {asked}?", "answer": answer}
    if task == "multi-choice":
        lines = [f"{letter}. {action}" for letter, action in zip("ABC", actions, strict=False)]
        if number % 4 == 3:
            lines.append(f" D. {actions[3]}")  # one published row has this space
        found.add("multi_choice", LETTERS[: len(lines)], LETTERS[truth], dim=dim)
        return {"question": "\n".join([f"What does it do, {asked}?", *lines]), "answer": lines[truth].strip()}
    if task == "caption_matching":
        heads = [("Option 1", "Option 2"), ("Sentence A", "Sentence B"), ("Caption A", "Caption B")][number % 3]
        lines = [f"{head}: It is {action}." for head, action in zip(heads, actions, strict=False)]
        found.add("caption_matching", "AB", LETTERS[truth % 2], dim=dim)
        return {"question": "\n".join([f"Which caption fits, {asked}?", *lines]), "answer": lines[truth % 2]}
    lines = [f"Information {LETTERS[i]}: {{'subject': 'dog', 'action': '{actions[i]}'}}" for i in range(3)]
    says = [f"The dog is {action}." for action in actions[:3]] + ["A dog.", "A cat sleeps.", ""]
    found.add("captioning", says, says[truth], dim=dim)
    question = "\n".join([f"Write a caption, {asked}.", *lines, "Generated Caption:"])
    return {"question": question, "answer": f"{LETTERS[truth]}. {actions[truth]}"}


def videomme(rng: random.Random, questions: int, videos: int) -> Published:
    found, rows = Published(), []
    for number in range(questions):
        video = f"mme{number % videos}"
        found.videos[video] = f"data/{video}.mp4"
        kind, truth = rng.choice(["short", "medium", "long"]), rng.choice("ABCD")
        rows.append(
            {
                "video_id": f"{number % videos:03d}",
                "duration": kind,
                "domain": "Knowledge",
                "sub_category": "Humanity & History",
                "videoID": video,
                "question_id": f"{number:03d}-1",
                "task_type": "Counting Problem" if number % 2 else "OCR Problems",
                "question": f"When, number {number}?",
                "options": [f"{letter}. at {letter} o'clock." for letter in "ABCD"],
                "answer": truth,
            }
        )
        found.add(kind, "ABCD", truth)
    found.files = {"videomme/test-00000-of-00001.parquet": rows}
    return found


FORMATS: dict[str, Callable[[random.Random, int, int], Published]] = {
    "video-holmes": video_holmes,
    "cg-bench": cg_bench,
    "cg-bench-reasoning": lambda rng, questions, videos: cg_bench(rng, questions, videos, reasoning=True),
    "vrbench": vrbench,
    "vrbench-summary": vrbench,
    "videommmu": videommmu,
    "vsi-bench": vsi_bench,
    "mmvu": mmvu,
    "mvbench": mvbench,
    "tempcompass": tempcompass,
    "videomme": videomme,
    **LONG_FORMATS,
}


# -- what is right, without our code ------------------------------------------------------------------------------


def is_right(truth: dict[str, Any], said: str | None) -> bool:
    """Whether an answer (None: it failed) is right, by the words of the papers and not by our graders."""
    if said is None:
        return False
    if truth["kind"] == "yes_no":
        return said.lower().startswith(truth["answer"]) and said != "yes or no"
    return said == truth["answer"]


def expected_scores(
    name: str, truths: Sequence[dict[str, Any]], said: Sequence[str | None]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """The scores of a benchmark, and the accuracy by kind of question and (TempCompass) by dimension."""
    right: dict[str, list[bool]] = defaultdict(list)
    dims: dict[str, list[bool]] = defaultdict(list)
    for truth, text in zip(truths, said, strict=True):
        right[truth["kind"]].append(is_right(truth, text))
        if "dim" in truth:
            dims[truth["dim"]].append(is_right(truth, text))
    by_kind = {kind: statistics.mean(part) for kind, part in right.items()}
    expected = {"accuracy": statistics.mean(one for part in right.values() for one in part)}
    if name == "vsi-bench":
        expected = vsi_scores(truths, said)
    if name == "tempcompass":
        rules = {task: by_kind[task] for task in ("multi_choice", "yes_no", "caption_matching")}
        expected = {"accuracy": statistics.mean(rules.values()), **rules, "captioning_overlap": by_kind["captioning"]}
    if name == "mmvu":
        expected = {"accuracy_choice": by_kind["multiple_choice"], "accuracy_open": by_kind["open_ended"]}
    if name == "mlvu":
        expected["m_avg"] = statistics.mean(by_kind.values())
    if "span" in by_kind:  # all of a true span, or nothing of it
        expected = dict.fromkeys(("answer_iou", *(f"answer_recall_at_{k}" for k in (30, 50, 70))), expected["accuracy"])
    if name == "mvbench":
        expected["accuracy_by_task"] = statistics.mean(by_kind.values())
    return expected, by_kind, {dim: statistics.mean(part) for dim, part in dims.items()}


def video_r1_mra(text: str | None, truth: str) -> float:
    """As its program computes it: the whole answer as a number, errors in single precision."""
    try:
        guess, true = np.float32(text or "none"), np.float32(truth)
    except ValueError:
        return 0.0
    error = abs(guess - true) / (abs(true) + np.float32(1e-8))
    return float(sum(error < np.float32(1) - np.float32(0.5 + 0.05 * step) for step in range(10))) / 10


def vsi_scores(truths: Sequence[dict[str, Any]], said: Sequence[str | None]) -> dict[str, float]:
    """Both papers' figures in exact fractions, so that an error that lies on a threshold lies on it."""
    accuracy, strict, inclusive, published = (defaultdict(list) for _ in range(4))
    for truth, text in zip(truths, said, strict=True):
        if truth["kind"].startswith(("object_rel", "route", "obj_app")):
            accuracy[truth["kind"]].append(float(text == truth["answer"]))
            continue
        thresholds = [Fraction(step, 20) for step in range(1, 11)]  # 1 - θ
        published[truth["kind"]].append(video_r1_mra(text, truth["answer"]))
        text = "2" if text == "about two" else text
        try:
            error = abs(Fraction(text or "none") - Fraction(truth["answer"])) / Fraction(truth["answer"])
        except ValueError:
            error = Fraction(100)
        strict[truth["kind"]].append(sum(error < limit for limit in thresholds) / 10)
        inclusive[truth["kind"]].append(sum(error <= limit for limit in thresholds) / 10)
    tasks = {kind: statistics.mean(part) for kind, part in [*accuracy.items(), *inclusive.items()]}
    directions = [tasks.pop(f"object_rel_direction_{level}") for level in ("easy", "medium", "hard")]
    assert len(tasks) == 7
    flat_accuracy = statistics.mean(one for part in accuracy.values() for one in part)
    flat_mra = statistics.mean(one for part in strict.values() for one in part)
    published_mra = statistics.mean(one for part in published.values() for one in part)
    return {
        "overall": statistics.mean([*tasks.values(), statistics.mean(directions)]),
        "overall_video_r1": (flat_accuracy + published_mra) / 2,
        "accuracy": flat_accuracy,
        "mra": flat_mra,
        "mra_inclusive": statistics.mean(one for part in inclusive.values() for one in part),
    }
