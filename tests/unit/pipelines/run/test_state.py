from __future__ import annotations

import pytest
from vthink.components.common.config import STAGES
from vthink.pipelines.config import load
from vthink.pipelines.run.session import session
from vthink.pipelines.run.state import State, preview_stages, stage_keys, stage_settings


def changed(*overrides: str) -> set[str]:
    before = stage_keys(load("laptop"), State())
    after = stage_keys(load("laptop", list(overrides)), State())
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.max_rows=3", "prepare"),
        ("video.num_frames=4", "prepare"),
        ("model.seed=3", "sft"),
        ("sft.max_steps=3", "sft"),
        ("grpo.max_steps=3", "grpo"),
        ("evaluation.max_items=3", "evaluate"),
        ("deployment.smoke_items=3", "register"),
    ],
)
def test_a_changed_setting_changes_its_stage_and_all_after_it(override, first):
    assert changed(override) == set(STAGES[STAGES.index(first) :])


def test_settings_of_the_machine_change_no_stage():
    assert changed("launch.processes=2", "tracking.experiment=other") == set()


def test_a_redo_changes_its_stage_and_all_after_it():
    before, after = (stage_keys(load("laptop"), State(redo=redo)) for redo in ({}, {"grpo": 1}))
    assert {stage for stage in STAGES if before[stage] != after[stage]} == set(STAGES[2:])


def test_the_state_survives_being_written(tmp_path):
    state = State(redo={"sft": 2}, runs={"k": "r"}, finished={"sft": {"k": "s3://b/sft/x/manifest.json"}})
    state.write(tmp_path)
    assert State.read(tmp_path) == state
    assert State.read(tmp_path, "sft").redo == {"sft": 3}
    assert State.read(tmp_path / "none") == State()


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
        again = preview_stages(opened, "prepare")
        assert [entry.action for entry in again][:2] == ["run", "run"]
        assert [entry.reason for entry in again][:2] == ["--from: once more", "after prepare, which runs"]
        state = State.read(opened.workspace.root)
        state.settings = {
            "sft": stage_settings(
                load("laptop", ["sft.max_steps=3", "grpo.enabled=false", "evaluation.gate=[]"]), "sft"
            )
        }
        state.finished["sft"] = {"another": state.finished["sft"][keys["sft"]]}
        state.write(opened.workspace.root)
        assert preview_stages(opened)[1].reason == "another setting: sft.max_steps 3 → 400"
        State(finished=finished).write(opened.workspace.root)
        opened.storage.delete_prefix(finished["sft"][keys["sft"]].removesuffix("manifest.json"))
        assert [entry.action for entry in preview_stages(opened)][:2] == ["reuse", "run"]
