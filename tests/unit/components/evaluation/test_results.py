import json
import math

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.results import EvaluationResult, read_benchmark, read_evaluation

from .small_world import items_of, result_of, stage_result, two_models, write_two_models


def test_a_result_that_was_written_is_read_as_it_was(tmp_path):
    folders = write_two_models(tmp_path, videos=6)
    for name, made in two_models(videos=6, data=str(tmp_path / "data")).items():
        read = read_benchmark(folders[name], name)
        assert read.items == made.items
        assert read.result.model_dump_json() == made.result.model_dump_json()
        assert read_benchmark(folders[name]).model == name  # the last part of the model's folder


def test_the_result_of_the_stage_is_read_back_and_gives_every_model_as_a_benchmark(world, config):
    items = {
        model: {name: items_of(world, [text] * len(world), model, name) for name in ("ordered", "shuffled")}
        for model, text in (("base", "<answer>A</answer>"), ("grpo", "<answer>B</answer>"))
    }
    results = [result_of(world, cells, model, config) for model, cells in items.items()]
    result = stage_result(results, config)
    read = read_evaluation(result.model_dump_json(by_alias=True).encode(), "result.json")
    assert read.model_dump_json() == result.model_dump_json()
    everything = [item for cells in items.values() for cell in cells.values() for item in cell]
    base, grpo = (read.on_split(model, everything, "here") for model in read.models)
    assert grpo.items == items["grpo"]
    assert grpo.ordered.scores["accuracy"].n == len(world)
    assert grpo.same_questions(base)
    other = EvaluationResult.model_validate(result).model_copy(update={"split": "validation"})
    assert not other.on_split("grpo", everything, "there").same_questions(grpo)


@pytest.mark.parametrize(
    ("damage", "mistake"),
    [
        (lambda r: r.pop("settings"), "field 'settings': Field required"),
        (lambda r: r["settings"].pop("questions"), "field 'settings.questions': Field required"),
        (lambda r: r.update(headline="nothing"), "'nothing' is none of the scores"),
        (lambda r: r["conditions"].pop("ordered"), "field 'conditions': 'ordered' is missing"),
        (
            lambda r: r["conditions"]["ordered"]["accuracy"].update(value="0.5"),
            "field 'conditions.ordered.accuracy.value'",
        ),
        (lambda r: r["conditions"]["ordered"]["accuracy"].update(value=math.inf), "ordered.accuracy"),
        (lambda r: r["conditions"]["ordered"].update(by_kind=[1]), "field 'conditions.ordered.by_kind'"),
        (
            lambda r: r["conditions"].update(upside_down={"scores": {}}),
            "field 'conditions': 'upside_down' is not a condition",
        ),
        (
            lambda r: r.update(failed=[{"id": "a", "frames": "x", "error": "e"}]),
            "field 'failed.0.frames': 'x' is not a condition",
        ),
        (lambda r: r["settings"].update(video="16 frames"), "field 'settings.video'"),
    ],
)
def test_a_result_that_is_not_what_the_command_writes_is_refused_in_one_line(tmp_path, damage, mistake):
    folder = write_two_models(tmp_path, videos=3)["base"]
    result = json.loads((folder / "result.json").read_text())
    damage(result)
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError) as failure:
        read_benchmark(folder)
    assert mistake in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (lambda row: row.pop("metrics"), "field 'metrics'"),
        (lambda row: row["metrics"].update(accuracy="1"), "field 'metrics.accuracy'"),
        (lambda row: row["metrics"].update(accuracy=math.nan), "line 3"),
        (lambda row: row.update(evidence=[[0, "later", "x"]]), "field 'evidence.0.1'"),
        (lambda row: row.update(options="AB"), "field 'options'"),
        (lambda row: row.update(clip=[0]), "field 'clip.1'"),
    ],
)
def test_a_damaged_item_is_named_by_its_line_and_field(tmp_path, change, mistake):
    folder = write_two_models(tmp_path, videos=3)["base"]
    lines = (folder / "items.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    change(row)
    lines[2] = json.dumps(row)
    (folder / "items.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"items.jsonl, line 3") as failure:
        read_benchmark(folder)
    assert mistake in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"id": ' + "[" * 5000])
def test_a_line_that_is_no_item_is_named(tmp_path, line):
    folder = write_two_models(tmp_path, videos=3)["base"]
    with (folder / "items.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"items.jsonl, line 19: "):
        read_benchmark(folder)


def test_a_folder_with_nothing_in_it_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"give a folder that `vthink evaluate --benchmark"):
        read_benchmark(tmp_path)
