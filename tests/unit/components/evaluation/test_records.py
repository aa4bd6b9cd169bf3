import json

from vthink.components.evaluation.records import flat_metrics, item_traces, items_table, result_table

from .small_world import items_of, result_of, stage_result


def test_metrics_tables_and_traces_hold_every_number_and_item(world, config):
    items = {
        model: {name: items_of(world, [text] * len(world), model, name) for name in ("ordered", "other_video")}
        for model, text in (("base", "<answer>A</answer>"), ("grpo", "<answer>B</answer>"))
    }
    result = stage_result([result_of(world, cells, model, config) for model, cells in items.items()], config)
    metrics = flat_metrics(result)
    stated = result.models["grpo"].conditions["ordered"]
    assert metrics["evaluation/grpo/ordered/accuracy"] == stated.metrics["accuracy"].value
    assert (
        metrics["evaluation/grpo/ordered/accuracy/multiple_choice"]
        == stated.by_type["multiple_choice"]["accuracy"].value
    )
    assert "evaluation/grpo/other_video/accuracy/kind_direction" in metrics
    table = result_table(result)
    assert len(set(map(len, table.values()))) == 1
    assert len(table["model"]) == len(metrics)
    everything = [item for cells in items.values() for cell in cells.values() for item in cell]
    assert len(items_table(everything)["id"]) == 4 * len(world)
    assert set(items_table(everything)["frames"]) == {"ordered", "other_video"}
    traces = item_traces(items["grpo"]["ordered"], 3, 0)
    assert [trace.tags["vthink.outcome"] for trace in traces].count("failed") == 0
    assert len(traces) == 3
    json.dumps([[dict(trace.inputs), dict(trace.outputs)] for trace in traces])
