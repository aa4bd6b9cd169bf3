"""What `compat.kfp` works around is still so in the installed KFP; a test that fails here says what may go."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from vthink.components.common.compat import kfp as compat
from vthink.components.common.compat.kfp import TaskEvent, TaskFailedError, run_here, task_event, task_output

FAULTS = """
    import json, sys
    from kfp import dsl, local
    from vthink.components.common.compat.kfp import run_here
    from pathlib import Path
    from typing import NamedTuple

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def judge() -> NamedTuple("Verdict", [("passed", str)]):
        return ("yes",)

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def branch() -> str:
        return "taken"

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def counts() -> list:
        return [1, 2]

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def kinds(values: list) -> str:
        return ",".join(type(value).__name__ for value in values)

    @dsl.pipeline(name="faults")
    def faults():
        verdict = judge()
        with dsl.If(verdict.outputs["passed"] == "yes"):
            branch()
        kinds(values=counts().output)

    run_here(faults, {}, Path("out"))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The pipeline above, run: its root, and what it printed."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "dag.py").write_text(textwrap.dedent(FAULTS))
    done = subprocess.run([sys.executable, "dag.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", done.stdout + done.stderr


def test_a_condition_on_a_named_output_is_silently_false(ran: tuple[Path, str]):
    root, printed = ran
    assert list(root.glob("*/judge/executor_output.json"))
    assert not list(root.glob("*/branch*")), "mended (kubeflow/pipelines#13313): conditions may look at named outputs"
    assert "SUCCESS" in printed


def test_an_integer_in_a_list_arrives_as_a_float(ran: tuple[Path, str]):
    assert task_output(ran[0], "kinds") == "float,float", "mended: integers in lists stay integers"


def test_progress_is_printed_and_told_in_no_other_way(ran: tuple[Path, str]):
    from kfp import local

    events = [event for line in ran[1].splitlines() if (event := task_event(compat.plain(line)))]
    assert events[0].succeeded is None
    assert {event.task for event in events if event.succeeded} == {"judge", "counts", "kinds"}
    known = {"runner", "pipeline_root", "workspace_root", "raise_on_error", "enable_caching", "cache_root"}
    assert set(inspect.signature(local.init).parameters) <= known, "kfp.local may tell of progress now: look"


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("12:00:00.000 - INFO - Executing task 'sft'", TaskEvent("sft", None)),
        ("12:00:00.000 - INFO - Task 'sft' finished with status SUCCESS", TaskEvent("sft", True)),
        ("12:00:00.000 - ERROR - Task 'sft' finished with status FAILURE", TaskEvent("sft", False)),
        ("sft: step 3", None),
    ],
)
def test_a_line_tells_of_a_task(line: str, event: TaskEvent | None):
    assert task_event(line) == event


def test_a_failed_task_and_a_fault_of_ours_are_apart(tmp_path: Path):
    def failed() -> None:
        raise RuntimeError("Task \x1b[91m'sft'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m")

    with pytest.raises(TaskFailedError, match=r"^Task 'sft' finished with status FAILURE$"):
        run_here(failed, {}, tmp_path)

    def broken() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else") as error:
        run_here(broken, {}, tmp_path)
    assert not isinstance(error.value, TaskFailedError)


def test_the_client_has_no_public_way_to_its_apis_and_no_time_limit():
    import kfp

    public = [name for name in dir(kfp.Client) if "api" in name.lower() and not name.startswith("_")]
    assert public == [], "kfp.Client has its APIs in public now"
    parameters = set(inspect.signature(kfp.Client.__init__).parameters)
    assert not {name for name in parameters if "timeout" in name or "retries" in name}, "kfp.Client limits time now"


def test_the_client_reads_a_file_in_the_home_folder():
    import kfp

    assert Path(kfp.Client._LOCAL_KFP_CONTEXT).is_relative_to(Path.home())
    assert "_LOCAL_KFP_CONTEXT" in inspect.getsource(kfp.Client._load_context_setting_or_default)
