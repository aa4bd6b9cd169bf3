from __future__ import annotations

import json

import pytest
from vthink.components.common.errors import UserError
from vthink.components.common.storage.manifest import Manifest
from vthink.pipelines.config import load
from vthink.pipelines.run.execute import Outcome
from vthink.pipelines.run.progress import StageProgress
from vthink.pipelines.run.session import session
from vthink.pipelines.run.summary import read_summary, write_summary


def test_the_summary_of_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no run has finished in this workspace; start one with `vthink run`"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"run_id": "r"}))
    with pytest.raises(UserError, match=r"not the summary of this version \(config\); repeat `vthink run`"):
        read_summary(tmp_path)


def outcome(opened, verdict: str) -> Outcome:
    """A run whose evaluation, gate and (where it passed) registration have left manifests."""

    def manifest(stage: str, **more) -> Manifest:
        return Manifest(stage=stage, fingerprint="f", uri=f"s3://vthink/{stage}/f/", seconds=2.0, **more)

    result = {"models": {"base": {}, "sft": {}}, "candidate": "sft", "comparisons": []}
    opened.storage.write_json("s3://vthink/result.json", result)
    files = {"result": "s3://vthink/result.json", "report": "s3://vthink/report.html"}
    manifests = {
        "evaluate": manifest("evaluate", files=files),
        "gate": manifest("gate", details={"verdict": verdict, "lines": ["pass  accuracy"], "champion": None}),
    }
    if verdict == "pass":
        model = {"name": "vthink", "version": 3, "alias": "champion", "source": "s3://vthink/m/"}
        question = {"question": "Which way?", "options": ["left"], "media_uri": "s3://vthink/v.mp4", "truth": "A",
                    "answer": "A", "segments": [], "text": "<answer>A</answer>"}  # fmt: skip
        manifests["deploy"] = manifest("deploy", details={**model, "question": question, "replaced": None})
    return Outcome("run-1", "parent", {"gate": StageProgress("gate", "done", seconds=1.04)}, manifests)


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_a_summary_is_read_as_it_was_written_and_keeps_its_keys_for_programs(elsewhere, verdict):
    with session(load("laptop"), elsewhere) as opened:
        written = write_summary(opened, outcome(opened, verdict))
        assert read_summary(elsewhere) == written
    raw = json.loads((elsewhere / "summary.json").read_text())
    keys = "run_id config created models candidate comparisons gate model question report prefixes mlflow stages"
    assert list(raw) == keys.split()
    assert raw["gate"]["verdict"] == verdict
    assert written.gate.passed == (verdict == "pass")
    assert raw["stages"] == {"gate": {"status": "done", "seconds": 1.0, "work_seconds": 2.0}}
    if verdict == "pass":
        assert raw["model"] == {"name": "vthink", "version": 3, "alias": "champion", "source": "s3://vthink/m/"}
        assert raw["question"]["text"] == "<answer>A</answer>"
    else:
        assert (raw["model"], raw["question"]) == (None, None)
