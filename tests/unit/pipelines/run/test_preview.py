from __future__ import annotations

from vthink.pipelines.config import load
from vthink.pipelines.run.preview import preview_stages
from vthink.pipelines.run.session import session
from vthink.pipelines.run.state import State, stage_keys


def test_a_preview_reuses_what_is_there_and_runs_what_is_gone(elsewhere, manifest):
    config = load("laptop", ["grpo.enabled=false", "evaluation.gate=[]"])
    with session(config, elsewhere) as opened:
        keys = stage_keys(config, State())
        finished = {stage: {keys[stage]: manifest(opened, stage)} for stage in ("prepare", "sft")}
        State(finished=finished).write(opened.workspace.root)
        assert [entry.action for entry in preview_stages(opened)] == [
            "reuse",
            "reuse",
            "skip",
            "run",
            "check",
            "check",
            "check",
        ]
        assert [entry.action for entry in preview_stages(opened, "prepare")][:2] == ["run", "run"]
        opened.storage.delete_prefix(finished["sft"][keys["sft"]].removesuffix("manifest.json"))
        assert [entry.action for entry in preview_stages(opened)][:2] == ["reuse", "run"]
