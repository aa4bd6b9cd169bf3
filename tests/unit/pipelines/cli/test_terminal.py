"""What a person sees in a real terminal, tmux, of 60, 80 and 150 columns."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vthink.components.common.config import STAGES
from vthink.components.common.launch.workspace import Workspace
from vthink.pipelines.run.progress import StageProgress, read_step
from vthink.pipelines.run.status import ProgressFile

WIDTHS = (60, 80, 150)
Screens = Callable[[], dict[int, list[str]]]


def stages() -> dict[str, StageProgress]:
    made = {stage: StageProgress(stage) for stage in STAGES}
    made["prepare"] = StageProgress("prepare", status="done", started=1.0, seconds=12.0)
    made["sft"] = StageProgress("sft", status="reused")
    made["grpo"] = StageProgress("grpo", status="running", started=1.0, seconds=4000.0)
    for step, value in enumerate((0.1, 0.2, 0.44), 1):
        read_step(
            f"grpo {10 * step}/400 · reward 1.2 · validation/accuracy {value} · 6.1 s/step · 2195 s left", made["grpo"]
        )
    return made


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Screens]:
    """`vthink watch` in three terminals; what each shows, when asked."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    # pytest sets COLUMNS, which counts for more than the terminal's own width.
    watch = f"{sys.executable} -m vthink.pipelines.cli.main watch --workspace {tmp_path}"
    command = f"env -u COLUMNS -u LINES {watch}; sleep 600"
    tmux = ("tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null")

    def screens() -> dict[int, list[str]]:
        shown = {}
        for width in WIDTHS:
            done = subprocess.run(
                [*tmux, "capture-pane", "-p", "-t", f"w{width}"], capture_output=True, text=True, check=True
            )
            shown[width] = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
        return shown

    with Workspace(tmp_path).lock():
        ProgressFile(tmp_path, "my-1").update(stages())  # type: ignore[arg-type]
        for width in WIDTHS:
            size = ("-x", str(width), "-y", "24")
            subprocess.run([*tmux, "-u", "new-session", "-d", "-s", f"w{width}", *size, command], check=True)
        yield screens
    subprocess.run([*tmux, "kill-server"], check=False)


def when(screens: Screens, happened: Callable[[list[str]], bool]) -> dict[int, list[str]]:
    deadline = time.monotonic() + 120
    while True:
        shown = screens()
        if all(happened(lines) for lines in shown.values()):
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)


def test_a_run_is_readable_at_60_80_and_150_columns(terminals: Screens, tmp_path: Path) -> None:
    shown = when(terminals, lambda lines: len(lines) >= len(STAGES))
    for width, lines in shown.items():
        assert [line.split()[1] for line in lines[: len(STAGES)]] == list(STAGES), lines
        assert len(lines) == len(STAGES)  # one line each: nothing is folded
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
        grpo = lines[STAGES.index("grpo")]
        assert "1:06:40  ━───────── 30/400 · 37 min left" in grpo
        assert ("accuracy 0.44 ▁▃█" in grpo) == (width >= 80)
    failed = stages()
    failed["grpo"].status, failed["grpo"].line = "failed", "grpo: step 31: the loss is not finite, " + "and so on " * 20
    ProgressFile(tmp_path, "my-1").update(failed)  # type: ignore[arg-type]
    for width, lines in when(terminals, lambda lines: any("✗ grpo" in line for line in lines)).items():
        assert [line.split()[1] for line in lines] == list(STAGES), lines
        assert max(map(len, lines)) <= width
        assert "grpo: step 31: the loss" in lines[STAGES.index("grpo")]


def test_a_line_that_is_folded_would_be_noticed(terminals: Screens) -> None:
    shown = when(terminals, lambda lines: len(lines) >= len(STAGES))
    assert max(map(len, shown[150])) > 60  # so a narrower terminal shows less of it, and does not fold it
