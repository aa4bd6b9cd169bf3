"""MVBench."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ...common.errors import UserError
from ..scores import ACCURACY, Score, accuracy, kind_part
from .benchmark import Benchmark
from .entries import Entry, Question, choice

MVBENCH_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "moving_count": ("clevrer/video_validation",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "character_order": ("perception/videos",),
    "object_shuffle": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "moving_direction": ("clevrer/video_validation",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/video_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "moving_attribute": ("clevrer/video_validation",),
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "unexpected_action": ("FunQA_test/test",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "action_count": ("perception/videos",),
}
"""Tasks, and where the published archives put their videos (lmms-eval's first); ``_segment``: cut already."""


def _mvbench(entry: Entry) -> Iterator[Question]:
    task = entry.maybe("task_type") or next(
        (name for name in (PurePosixPath(entry.file).stem, *PurePosixPath(entry.file).parts) if _task(name)), ""
    )
    task = _task(task) or ""
    if not task:
        raise UserError(f"{entry.file}: named for none of the 20 tasks ({', '.join(sorted(MVBENCH_FOLDERS))})")
    video, options = entry.text("video"), entry.options("candidates")
    yield choice(
        entry,
        [f"{folder}/{video}" for folder in MVBENCH_FOLDERS[task]],
        identity=f"{task}-{entry.number}",
        question=entry.text("question"),
        options=options,
        answer=entry.letter("answer", options, by_text=True),
        kind=task,
        start_s=entry.seconds("start"),
        end_s=entry.seconds("end"),
    )


def _task(name: str) -> str | None:
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return plain if plain in MVBENCH_FOLDERS else None


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    asks="20 tasks of 200 questions on short videos, 2 to 5 options",
    source="arXiv 2311.17005; OpenGVLab/MVBench; lmms-eval tasks/mvbench",
    hub="OpenGVLab/MVBench",
    files=(tuple(f"{task}.json" for task in MVBENCH_FOLDERS), tuple(f"{task}/*.parquet" for task in MVBENCH_FOLDERS)),
    read=_mvbench,
    scores={
        "accuracy": ACCURACY,
        "accuracy_by_task": Score("mean over the tasks of their accuracies", accuracy, kind_part),
    },
    traps=(
        "lmms-eval leaves empty answers out of the denominator; here they are wrong",
        "episodic_reasoning is published as folders of frames: convert them to videos (3 fps), or they are missing",
        "with whole videos of STAR, STA and TVQA the part between start and end is shown, with *_segment all",
    ),
)
