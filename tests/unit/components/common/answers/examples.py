"""Samples and answers that several tests read."""

from __future__ import annotations

from vthink.components.common.rows.sample import Sample

TRUTHS = {
    "multiple_choice": "B",
    "numerical": "3",
    "ocr": "exit to the left",
    "free_form": "The red square moves left.",
    "regression": "4.0",
}


def sample(problem_type: str = "multiple_choice", **changes: object) -> Sample:
    row: dict[str, object] = {
        "id": "row-1",
        "media": {"kind": "video", "uri": "a.mp4"},
        "question": "What happens?",
        "options": ["left", "right", "up", "down"] if problem_type == "multiple_choice" else [],
        "problem_type": problem_type,
        "answer": TRUTHS[problem_type],
    }
    return Sample.model_validate(row | changes)


THINKER = (
    "<time>00:01-00:03</time><caption>a red square appears</caption><think>It is first.</think>\n"
    "Then something else happens.\n"
    "<time>00:05 - 01:00:07</time>\n<caption>a blue circle</caption>\n<think>It is second.</think>"
    "<think>So red was first.</think>\n<answer>A</answer>"
)


R1 = "<think>It moves left,\nthen up.</think>\n<answer>left</answer>"
