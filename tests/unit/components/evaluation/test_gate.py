import hashlib
from typing import Any

import pytest
from vthink.components.common.context import RunContext
from vthink.components.common.errors import UserError
from vthink.components.common.storage.manifest import Manifest
from vthink.components.common.storage.names import join
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.tracking.client import registry_client
from vthink.components.evaluation.config import EvaluationConfig
from vthink.components.evaluation.gate import find_champion, gate_uri, judge_candidate, read_gate
from vthink.components.evaluation.results import DataReference, EvaluatedModel, EvaluationResult, stage_files

from .test_gate_verdict import measured, share

NAME = "vthink"


def write_evaluation(storage: Storage, name: str, right: int, data: str = "data-1", *, is_sealed: bool = True) -> str:
    """An evaluation of base and grpo in which grpo answers so many of 80 questions rightly; its manifest's URI.
    ``is_sealed``: whether it says which items it was computed from."""
    formatted = {"format_rate": [1.0] * 80}
    models = {
        "base": measured("base", ordered={"accuracy": share(16)} | formatted),
        "grpo": measured(
            "grpo", ordered={"accuracy": share(right)} | formatted, shuffled={"accuracy": share(24)} | formatted
        ),
    }
    lines = b"".join(item.to_line() for one in models.values() for cell in one.items.values() for item in cell)
    result = EvaluationResult(
        items_sha256=hashlib.sha256(lines).hexdigest() if is_sealed else "",
        models={
            model: EvaluatedModel(uri=f"s3://b/{model}/", fingerprint=model, **one.result.conditions)
            for model, one in models.items()
        },
        candidate="grpo",
        split="test",
        items=80,
        videos=20,
        data=DataReference(uri="s3://b/d/", fingerprint=data),
        prompt="compact/1",
        settings={"max_items": None},
    )
    prefix = join(storage.config.root_uri, "evaluate", name + "/")
    files = stage_files(prefix, ())
    storage.write_bytes(files["result"], result.model_dump_json(by_alias=True).encode())
    storage.write_bytes(files["items"], lines)
    return Manifest(stage="evaluate", fingerprint=name, uri=prefix, files=files).write(storage)


def put_into_service(context: RunContext, evaluation: str | None) -> str:
    client = registry_client(context.tracking, context.storage)
    if not client.search_registered_models():
        client.create_registered_model(NAME)
    tags = {"vthink.evaluation_uri": evaluation} if evaluation else {}
    version = client.create_model_version(NAME, "s3://b/model/", tags=tags).version
    client.set_registered_model_alias(NAME, "champion", version)
    return str(version)


def judged(context: RunContext, evaluation: str, *rules: dict[str, Any]) -> tuple[str, list[str]]:
    config = EvaluationConfig.load({"gate": rules} if rules else {})
    verdict = judge_candidate(context.to_json(), config.to_json(), evaluation)
    return verdict, read_gate(Storage(context.storage), context, evaluation).details["lines"]


def test_without_a_champion_the_floors_decide(context, storage):
    verdict, lines = judged(context, write_evaluation(storage, "good", 64))
    assert verdict == "pass"
    assert lines[-1] == "gate passed: 3 of 3 rules hold"
    assert "there is no champion yet" in lines[2]
    verdict, lines = judged(context, write_evaluation(storage, "poor", 16))
    assert verdict == "fail"
    assert lines[1].startswith("FAIL  accuracy above base: 0.")


def test_an_evaluation_that_says_nothing_of_its_items_is_not_judged(context, storage):
    """Else its seal could be taken off together with the items."""
    with pytest.raises(UserError, match=r"says nothing of its items \(items_sha256\); evaluate"):
        judged(context, write_evaluation(storage, "bare", 64, is_sealed=False))


def test_a_candidate_worse_than_the_champion_fails_and_an_equal_one_passes(context, storage):
    good, poor = write_evaluation(storage, "good", 64), write_evaluation(storage, "poor", 40)
    put_into_service(context, good)
    assert judged(context, poor)[0] == "fail"
    assert judged(context, good)[0] == "pass"


def test_a_new_champion_is_a_new_judgement(context, storage):
    good, poor = write_evaluation(storage, "good", 64), write_evaluation(storage, "poor", 40)
    assert judged(context, poor)[0] == "pass"
    first = read_gate(storage, context, poor)
    version = put_into_service(context, good)
    assert judged(context, poor)[0] == "fail"
    second = read_gate(storage, context, poor)
    assert first.fingerprint != second.fingerprint
    assert (first.details["champion"], second.details["champion"]) == (None, version)


def test_the_same_question_is_judged_once(context, storage):
    good = write_evaluation(storage, "good", 64)
    judged(context, good)
    first = read_gate(storage, context, good)
    judged(context, good)
    assert read_gate(storage, context, good) == first
    again = context.model_copy(update={"redo": {"gate": 1}})
    judged(again, good)
    assert read_gate(storage, again, good).fingerprint != first.fingerprint


def test_a_champion_that_was_asked_other_questions_is_no_champion_to_be_compared_with(context, storage):
    put_into_service(context, write_evaluation(storage, "before", 40))
    rule = {"metric": "accuracy", "not_worse_than": "champion", "by": 0.02}
    verdict, lines = judged(context, write_evaluation(storage, "good", 64), rule)
    assert verdict == "pass"
    assert "over 80 questions of 20 videos, higher" in lines[0]
    # On other data there are no pairs: however much better it looks, the rule fails, and says why.
    verdict, lines = judged(context, write_evaluation(storage, "elsewhere", 64, data="data-2"), rule)
    assert verdict == "fail"
    assert "cannot be judged: champion was asked other questions" in lines[0]


def test_every_model_kind_and_condition_of_the_evaluation_can_be_compared_with(context, storage):
    verdict, lines = judged(
        context,
        write_evaluation(storage, "good", 64),
        {"metric": "accuracy", "by_kind": "direction", "above": "base", "by": 0.3},
        {"metric": "accuracy", "above": "shuffled", "by": 0.2},
    )
    assert verdict == "pass"
    assert "over 40 questions of 20 videos" in lines[0]
    assert "over 80 questions of 20 videos" in lines[1]


def test_a_rule_about_what_was_not_measured_is_a_mistake_and_no_verdict(context, storage):
    good = write_evaluation(storage, "good", 64)
    with pytest.raises(UserError, match=r"kind 'directions' of candidate was not measured; did you mean 'direction'"):
        judged(context, good, {"metric": "accuracy", "by_kind": "directions", "above": 0.5})
    with pytest.raises(UserError, match="no model 'sft' in this evaluation; it has: base, grpo, candidate"):
        judged(context, good, {"metric": "accuracy", "above": "sft"})
    assert not storage.exists(gate_uri(context, good))


def test_a_champion_without_its_evaluation_is_an_error_and_not_a_pass(context, storage):
    put_into_service(context, None)
    with pytest.raises(UserError, match=r"champion version 1 of 'vthink' has no tag vthink.evaluation_uri"):
        judged(context, write_evaluation(storage, "good", 64))


def test_the_champion_is_found_by_its_alias(context, storage):
    assert find_champion(context) is None
    good = write_evaluation(storage, "good", 64)
    version = put_into_service(context, good)
    client = registry_client(context.tracking, context.storage)
    client.create_model_version(NAME, "s3://b/newer/")  # registered later, not in service
    champion = find_champion(context)
    assert (champion.version, champion.evaluation_uri) == (version, good)


def test_the_verdict_is_recorded_in_mlflow(context, storage):
    good = write_evaluation(storage, "good", 64)
    judged(context, good)
    run_id = read_gate(storage, context, good).mlflow_run_id
    run = registry_client(context.tracking, context.storage).get_run(run_id)
    assert run.data.tags["vthink.gate"] == "pass"
    assert run.data.tags["vthink.stage"] == "gate"
    assert run.info.status == "FINISHED"
