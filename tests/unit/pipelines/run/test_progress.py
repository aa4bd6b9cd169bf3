from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from vthink.pipelines.run.progress import LocalRunWatcher

DAG = """
    import sys
    from kfp import dsl, local

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def merge_data() -> str:
        print("decoding 3 of 7")
        return "s3://b/prepare/1/manifest.json"

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def sft(data: str, fails: bool) -> str:
        print("step 1 of 9")
        if fails:
            raise ValueError("sft: the loss is not a number")
        return "s3://b/sft/1/manifest.json"

    @dsl.component(base_image="x-python", install_kfp_package=False)
    def gate(model: str) -> str:
        return "fail"

    @dsl.pipeline(name="small")
    def small(fails: bool = False):
        model = sft(data=merge_data().output, fails=fails)
        gate(model=model.output)

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
    small(fails=sys.argv[2] == "fails")
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    def watch(outcome: str) -> tuple[LocalRunWatcher, int]:
        folder = tmp_path_factory.mktemp("dag")
        (folder / "dag.py").write_text(textwrap.dedent(DAG))
        printed = folder / "pipeline.log"
        with printed.open("w") as log:
            done = subprocess.run(
                [sys.executable, "dag.py", str(folder / "kfp"), outcome],
                cwd=folder,
                stdout=log,
                stderr=log,
                check=False,
            )
        watcher = LocalRunWatcher(printed, folder / "kfp", folder, ["grpo"])
        while watcher.poll():
            pass
        return watcher, done.returncode

    return watch


def test_what_kfp_prints_becomes_progress_and_a_log_per_stage(watched):
    watcher, code = watched("works")
    assert code == 0
    stages = watcher.stages
    assert (stages["prepare"].status, stages["prepare"].line) == ("done", "decoding 3 of 7")
    assert stages["prepare"].output == "s3://b/prepare/1/manifest.json"
    assert (stages["sft"].status, stages["sft"].line) == ("done", "step 1 of 9")
    assert stages["grpo"].status == "skipped"
    assert (stages["gate"].status, stages["gate"].output) == ("refused", "fail")
    assert (stages["register"].status, stages["evaluate"].status) == ("skipped", "waiting")
    assert watcher.fail() is None


def test_a_failed_task_leaves_its_stage_its_reason_and_its_last_lines(watched):
    watcher, code = watched("fails")
    assert code != 0
    failed = watcher.fail()
    assert (failed.stage, failed.status) == ("sft", "failed")
    assert watcher.last_exception == "sft: the loss is not a number"
    assert "step 1 of 9" in watcher.last_lines
    assert "Traceback" not in "".join(watcher.last_lines)
