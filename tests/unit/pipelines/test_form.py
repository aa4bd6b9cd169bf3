"""What a person fills into the form of Kubeflow Pipelines' page is what the tasks get."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from vthink.components.common.config import ConfigError
from vthink.components.common.context import RunContext
from vthink.pipelines.config import Config, load, presets
from vthink.pipelines.form import FIELDS, SECTIONS, fill_in, shown
from vthink.pipelines.pipeline import arguments, compile_to, for_cluster

FORM = {*FIELDS, "preset", "training_pool"}


def submitted(config: Config) -> dict[str, Any]:
    context = RunContext(run_id="r", storage=config.storage, tracking=config.tracking, launch=config.launch)
    return dict(arguments(config, context))


def filled(form: dict[str, Any], **changes: Any) -> dict[str, Any]:
    form = form | changes
    fields = {name: form[name] for name in FORM}
    texts = fill_in(form["run"], form["config"], {name: form[name] for name in SECTIONS}, fields)
    return {name: json.loads(text) for name, text in texts.items()}


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_form_that_is_left_as_it_is_changes_nothing(preset: str) -> None:
    form = submitted(for_cluster(load(preset)))
    assert filled(form) == {name: json.loads(form[name]) for name in ("run", "config", *SECTIONS)}


def test_each_field_changes_its_setting_and_no_other() -> None:
    form = submitted(for_cluster(load("laptop")))
    before = filled(form)
    changes = {
        "rows": "s3://b/rows.jsonl",
        "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "sft_steps": 7,
        "grpo_steps": 8,
    }
    for name, value in changes.items():
        section, key = FIELDS[name]
        after = filled(form, **{name: value})
        assert after[section] == before[section] | {key: value}
        assert after["config"] == before["config"] | {section: after[section]}
        assert {name for name in SECTIONS if after[name] != before[name]} == {section}
    assert filled(form, training_pool="spot")["run"]["launch"]["pool"] == {"sft": "spot", "grpo": "spot"}
    plain = submitted(for_cluster(load("laptop", ["evaluation.gate=[]"])))
    assert filled(plain, train_sft=False)["sft"]["enabled"] is False


def test_empty_fields_are_those_of_the_settings() -> None:
    form = submitted(for_cluster(load("laptop")))
    empty = {"rows": "", "base_model": "", "sft_steps": 0, "grpo_steps": 0, "training_pool": "", "preset": ""}
    assert filled(form, **empty) == filled(form)
    bare = filled(form, **empty, config="")  # as of a pipeline that was compiled without a configuration
    assert {name: bare[name] for name in SECTIONS} == {name: filled(form)[name] for name in SECTIONS}


def test_a_preset_takes_the_place_of_the_settings_but_for_fields_and_sections_that_were_changed() -> None:
    form = submitted(for_cluster(load("laptop", ["launch.pool={grpo: gpu, sft: gpu}", "evaluation.gate=[]"])))
    wanted = for_cluster(load("video_r1_7b", ["data.source=s3://b/rows.jsonl"]))
    after = filled(form, preset="video_r1_7b", rows="s3://b/rows.jsonl")
    assert after["data"] == json.loads(wanted.data.to_json())
    assert after["grpo"] == json.loads(wanted.grpo.to_json())
    assert after["run"]["launch"]["processes"] == wanted.launch.processes
    assert after["run"]["launch"]["pool"] == {"grpo": "gpu", "sft": "gpu"}
    assert after["deployment"] == json.loads(form["deployment"])
    video = json.loads(form["video"]) | {"num_frames": 10}
    assert filled(form, preset="video_r1_7b", video=json.dumps(video))["video"]["num_frames"] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "video_r1"}, "unknown preset 'video_r1'"),
        ({"sft_steps": -7}, "the form: 'sft.max_steps'"),
        ({"training_pool": "Spot GPUs"}, "training_pool: 'pool.sft"),
        ({"train_sft": False}, "leave the rule out of evaluation.gate"),
    ],
)
def test_a_mistake_in_the_form_is_told_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filled(submitted(for_cluster(load("laptop"))), **changes)


def test_the_page_shows_named_fields_with_descriptions_and_defaults_and_calls_the_rest_advanced(tmp_path) -> None:
    config = load("video_r1_7b")
    path = compile_to(tmp_path / "vthink.yaml", config)
    spec = next(yaml.safe_load_all(path.read_text("utf-8")))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    named = {name for name, about in parameters.items() if not about["description"].startswith("Advanced. ")}
    assert named == FORM
    assert {name: parameters[name]["defaultValue"] for name in named} == shown(config)
    assert set(parameters) - named == {"run", "config", *SECTIONS}
