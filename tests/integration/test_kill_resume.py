"""Killed at any moment, a run resumes: the same result, nothing finished done twice, nothing left running."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FIRST_TASK = {
    "prepare": "plan-data", "sft": "sft", "grpo": "grpo", "evaluate": "evaluate", "gate": "gate",
    "register": "register", "deploy": "deploy",
}  # fmt: skip
LONG = {"prepare", "sft", "grpo", "evaluate", "deploy"}
"""Stages that take more than a moment."""


def began(demo, stage: str) -> bool:
    return f"Executing task '{FIRST_TASK[stage]}'" in demo.log(stage).rpartition(MARK)[2]


MARK = "-- killed --"


def mark(demo) -> None:
    """So that the next attempt's lines can be told from those of the attempts before."""
    for stage in FIRST_TASK:
        path = demo.workspace / "logs" / f"{stage}.log"
        if path.exists():
            with path.open("a", encoding="utf-8") as log:
                log.write(f"{MARK}\n")


def finishes_like(demo, finished, seen: dict[str, str]) -> None:
    """Run to the end, and compare with the run that nothing disturbed."""
    done = demo.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert demo.results() == finished.results()
    written = demo.manifests()
    assert {path: written[path] for path in seen} == seen, "a finished stage was done again"
    assert demo.orphans() == {}


def test_three_kills_of_vthink_run_in_every_stage_change_nothing(demo, finished):
    rng = random.Random(20250331)
    seen: dict[str, str] = {}
    kills = 0
    for stage in FIRST_TASK:
        for attempt in range(3):
            process = demo.start_run()
            if not demo.wait_until(process, lambda stage=stage: began(demo, stage)):
                process.communicate()
                break  # the whole run has finished
            # The first kill comes at once, the others at random, later and later.
            time.sleep(rng.uniform(0, 4 * attempt if stage in LONG else 0.4 * attempt))
            demo.kill(process)
            kills += 1
            assert demo.orphans() == {}
            written = demo.manifests()
            assert {path: written[path] for path in seen} == seen, "a finished stage was done again"
            seen = written
            mark(demo)
    assert kills >= 2 * len(FIRST_TASK)
    finishes_like(demo, finished, seen)


def changed(folder: Path) -> float:
    """When something in the folder was last made or removed; 0 when the folder itself is gone."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def workers(demo, module: str) -> list[int]:
    """The training processes themselves, without their launchers."""
    return [
        pid
        for pid, command in demo.processes().items()
        if f"-m {module}" in command and "torch.distributed" not in command
    ]


def test_kills_of_the_training_processes_before_and_while_a_checkpoint_is_written_change_nothing(demo, finished):
    def training() -> bool:
        return began(demo, stage) and bool(workers(demo, module))

    def writing() -> bool:
        """A checkpoint's folder of this attempt is there, and not yet sealed."""
        folders = (demo.workspace / "work" / stage).glob("*/checkpoints/checkpoint-*")
        made = [folder for folder in folders if changed(folder) > started]
        return any(not (folder / "sealed.json").exists() for folder in made)

    for stage in ("sft", "grpo"):
        module = f"vthink.components.{stage}"
        for moment in (training, writing, writing):
            started = time.time()
            process = demo.start_run()
            assert demo.wait_until(process, moment), "the run ended before it could be killed"
            for pid in workers(demo, module):
                os.kill(pid, signal.SIGKILL)
            said, _ = process.communicate()
            assert process.returncode == 1
            assert "Traceback" not in said.splitlines()[-1]
            assert f"vthink: stage {stage}: " in said
            assert "killed" in said.splitlines()[-1]
            assert demo.orphans() == {}
            mark(demo)
    finishes_like(demo, finished, demo.manifests())


def test_a_stop_from_the_keyboard_ends_everything_and_says_so(demo):
    process = demo.start_run()
    assert demo.wait_until(process, lambda: began(demo, "prepare"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert demo.orphans() == {}


def test_a_process_that_outlives_its_run_would_be_found(demo):
    import subprocess

    env = {**os.environ, "VTHINK_PROCESSES": str(demo.workspace / "processes")}
    with subprocess.Popen(["sleep", "30"], env=env) as process:
        # A process that is just being made has no environment to be seen yet.
        assert demo.wait_until(process, lambda: process.pid in demo.processes(), timeout_s=10)
        assert process.pid in demo.orphans(grace_s=0.3)
        process.kill()
