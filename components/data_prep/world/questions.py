"""The questions about a scene, with answers, evidence and reasoning."""

from __future__ import annotations

from ...common.rows.sample import Evidence, Media, ProblemType, Sample
from .scene import COLOURS, DIRECTIONS, Kind, Scene


def rows(scene: Scene) -> list[Sample]:
    """The questions about a scene."""
    return [_row(scene, kind) for kind in scene.questions]


def _row(scene: Scene, kind: Kind) -> Sample:
    shapes, content = scene.shapes, scene.content
    first, queried = shapes[0], shapes[content.queried]
    moves = f"the {first.name} moves {content.direction}"
    spans = [(t.start_s, t.end_s, f"a {t.name} appears") for t in shapes]
    problem_type: ProblemType = "multiple_choice"
    options: tuple[str, ...] = ()
    # There is one thought per span of evidence, so that a trace can put each where it belongs.
    match kind:
        case "direction":
            question = f"Which direction does the {first.name} move?"
            options, answer = tuple(DIRECTIONS), content.direction
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "describe":
            question = "What happens in the video?"
            problem_type, answer = "free_form", sentence(moves)
            spans, thoughts = [(first.start_s, first.end_s, moves)], [moves]
        case "speed":
            question = f"How fast does the {first.name} move, in percent of the picture's width per second?"
            problem_type, answer = "regression", f"{content.percent_per_s:.1f}"
            spans, thoughts = [(first.start_s, first.end_s, moves)], [f"it moves {answer} percent per second"]
        case "order":
            question = "What colour is the shape that appears first?"
            options, answer = tuple(COLOURS), first.colour
            thoughts = [f"{first.colour} is first", f"{shapes[1].colour} is second"]
        case "duration":
            question = f"For how many seconds is the {queried.name} visible?"
            problem_type, answer = "regression", f"{queried.end_s - queried.start_s:g}"
            spans, thoughts = [spans[content.queried]], [f"it is visible for {answer} seconds"]
        case "count":
            question = "How many shapes appear?"
            problem_type, answer = "numerical", str(len(shapes))
            thoughts = [f"that is {number}" for number in range(1, len(shapes) + 1)]
        case "ocr":
            question = "Which digits are shown, one after the other?"
            problem_type, answer = "ocr", " ".join(t.form for t in shapes)
            spans = [(t.start_s, t.end_s, f"a {t.name}") for t in shapes]
            thoughts = [f"the digit is {t.form}" for t in shapes]
        case "colour":
            question = f"What colour is the {first.form}?"
            options, answer = tuple(COLOURS), first.colour
            spans, thoughts = [], [f"the {first.form} is {first.colour}"]
        case "image_count":
            question = "How many shapes are there?"
            problem_type, answer = "numerical", str(len(shapes))
            spans, thoughts = [], ["there is " + " and ".join(f"a {t.name}" for t in shapes)]
    if options:
        answer = "ABCD"[options.index(answer)]
    return Sample(
        id=f"{scene.id}-{kind}",
        media=Media(kind="image" if scene.kind == "still" else "video", uri=scene.media_path),
        question=question,
        options=options,
        problem_type=problem_type,
        answer=answer,
        reasoning=" ".join(sentence(thought) for thought in thoughts),
        evidence=tuple(Evidence(start_s=a, end_s=b, caption=caption) for a, b, caption in spans),
        source="synthetic",
        split=scene.split,
        metadata={"kind": kind},
    )


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."
