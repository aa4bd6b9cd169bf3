"""The rules of the Kubernetes API that the other tests rely on: each is seen to be kept, and to be broken in vain."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from vthink.components.common.launch.kubernetes.client import (
    EVENT,
    POD,
    TRAIN_JOB,
    WORKLOAD,
    Cluster,
    ClusterError,
    Kind,
    condition,
)
from vthink.tests.fakes.controllers import Hand, until
from vthink.tests.fakes.kubernetes_api import ApiServer

Object = dict[str, Any]


@pytest.fixture
def cluster(admin: Cluster) -> Cluster:
    """These tests ask of the API, not of our rights."""
    return admin


def train_job(name: str = "t1", **spec: Any) -> Object:
    body = {"runtimeRef": {"name": "vthink-torch"}, "trainer": {"numNodes": 2, "command": ["torchrun"]}, **spec}
    return {"apiVersion": TRAIN_JOB.api_version, "kind": "TrainJob", "metadata": {"name": name}, "spec": body}


def service(**predictor: Any) -> Object:
    metadata = {"name": "s1", "annotations": {"serving.kserve.io/deploymentMode": "Standard"}}
    body = {"predictor": {"model": {"modelFormat": {"name": "vLLM"}}, **predictor}}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": body}


def refused(call: Any, *arguments: Any, **more: Any) -> tuple[int | None, str]:
    with pytest.raises(ClusterError) as caught:
        call(*arguments, **more)
    return caught.value.status, str(caught.value)


def test_defaults_are_set_and_ids_given(cluster: Cluster) -> None:
    made = cluster.create(TRAIN_JOB, train_job())
    assert made["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"
    assert made["spec"]["suspend"] is False
    assert made["metadata"]["uid"]
    assert made["metadata"]["generation"] == 1


def test_unknown_fields_are_refused_when_strict_and_dropped_otherwise(cluster: Cluster) -> None:
    wrong = train_job(numNodez=2)
    wrong["spec"]["trainer"]["imagee"] = "x"
    status, message = refused(cluster.create, TRAIN_JOB, wrong)
    assert status == 400
    assert 'unknown field "spec.numNodez"' in message
    assert 'unknown field "spec.trainer.imagee"' in message
    made = cluster.request("POST", TRAIN_JOB.path(cluster.namespace), body=wrong)
    assert "numNodez" not in made["spec"]
    assert "imagee" not in made["spec"]["trainer"]
    assert made["spec"]["trainer"]["numNodes"] == 2  # the control: what is known stays


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"trainer": {"numProcPerNode": 0}}, "numProcPerNode must be greater than or equal to 1"),
        ({"trainer": {"resourcesPerNode": {"limits": {"memory": "64GB"}}}}, "memory"),
        ({"trainer": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}, "Duplicate value"),
        ({"managedBy": "me"}, "ManagedBy must be"),
        ({"runtimeRef": {}}, "name"),
    ],
)
def test_invalid_objects_are_refused(cluster: Cluster, spec: Object, message: str) -> None:
    status, said = refused(cluster.create, TRAIN_JOB, train_job(**spec))
    assert status == 422
    assert message in said
    assert cluster.get(TRAIN_JOB, "t1") is None


def test_a_wrong_type_is_refused_by_the_webhook_that_decodes_it(cluster: Cluster) -> None:
    status, message = refused(cluster.create, TRAIN_JOB, train_job(trainer={"numNodes": "two"}))
    assert status == 400
    assert "numNodes" in message
    assert cluster.create(TRAIN_JOB, train_job())  # the control


@pytest.mark.parametrize("name", ["1abc", "a" * 64, "A", "a_b", ""])
def test_names_that_are_no_names_are_refused(cluster: Cluster, name: str) -> None:
    assert refused(cluster.create, TRAIN_JOB, train_job(name))[0] == 422


def dry_run(cluster: Cluster, kind: Kind, body: Object) -> Object:
    query = {"fieldValidation": "Strict", "dryRun": "All"}
    return cluster.request("POST", kind.path(cluster.namespace), query, body=body)


def test_the_crd_of_an_inference_service_asks_more_of_a_canary(cluster: Cluster) -> None:
    kind = Kind("InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices")
    assert dry_run(cluster, kind, service())
    canary = {"trafficPercent": 0, "predictor": {"name": "v2", "model": {"storageUri": "s3://b/2/"}}}
    with_canary = service()
    with_canary["spec"]["canary"] = [canary]
    assert refused(cluster.create, kind, with_canary)[0] == 422
    canary["predictor"]["model"] |= {"name": "kserve-container", "modelFormat": {"name": "vLLM"}}  # type: ignore[index]
    assert cluster.create(kind, with_canary)["spec"]["canary"][0]["trafficPercent"] == 0


def test_a_dry_run_checks_and_stores_nothing(cluster: Cluster) -> None:
    assert dry_run(cluster, TRAIN_JOB, train_job())["spec"]["suspend"] is False
    assert cluster.find(TRAIN_JOB) == []
    assert refused(dry_run, cluster, TRAIN_JOB, train_job(nope=1))[0] == 400


def test_a_name_is_given_out_once_and_generated_names_differ(cluster: Cluster) -> None:
    cluster.create(TRAIN_JOB, train_job())
    assert refused(cluster.create, TRAIN_JOB, train_job())[0] == 409
    generated = train_job()
    generated["metadata"] = {"generateName": "gen-"}
    names = {cluster.create(TRAIN_JOB, generated)["metadata"]["name"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("gen-") for name in names)


def test_a_stale_version_is_a_conflict_and_none_at_all_is_invalid(cluster: Cluster) -> None:
    made = cluster.create(TRAIN_JOB, train_job())
    path = TRAIN_JOB.path(cluster.namespace, "t1")
    newer = cluster.request("PUT", path, body={**made, "spec": {**made["spec"], "suspend": True}})
    assert newer["metadata"]["generation"] == 2
    assert refused(cluster.request, "PUT", path, body=made)[0] == 409
    unversioned = {**made, "metadata": {"name": "t1"}}
    assert refused(cluster.request, "PUT", path, body=unversioned)[0] == 422


def test_immutable_fields_stay(cluster: Cluster) -> None:
    cluster.create(TRAIN_JOB, train_job())

    def resize(found: Object) -> Object:
        found["spec"]["trainer"]["numNodes"] = 4
        return found

    status, message = refused(cluster.update, TRAIN_JOB, "t1", resize)
    assert status == 422
    assert "field is immutable" in message

    def pause(found: Object) -> Object:
        found["spec"]["suspend"] = True
        return found

    assert cluster.update(TRAIN_JOB, "t1", pause)["spec"]["suspend"] is True  # the control


def test_status_is_written_through_its_subresource_only(cluster: Cluster, hand: Hand) -> None:
    with_status = {**train_job(), "status": {"conditions": []}}
    assert "status" not in cluster.create(TRAIN_JOB, with_status)
    hand.condition(TRAIN_JOB, "t1", "Complete")

    def forge(found: Object) -> Object:
        found["status"]["conditions"] = []
        found["spec"]["suspend"] = True
        return found

    written = cluster.update(TRAIN_JOB, "t1", forge)
    assert condition(written, "Complete")["status"] == "True"  # not forged
    assert written["spec"]["suspend"] is True
    path = TRAIN_JOB.path(cluster.namespace, "t1", "status")
    cluster.request("PUT", path, body={**written, "spec": {**written["spec"], "suspend": False}})
    assert cluster.get(TRAIN_JOB, "t1")["spec"]["suspend"] is True  # type: ignore[index]
    bad = {**cluster.get(TRAIN_JOB, "t1"), "status": {"conditions": [{"type": "X", "status": "Maybe"}]}}  # type: ignore[dict-item]
    assert refused(cluster.request, "PUT", path, body=bad)[0] == 422


def test_selectors_choose_and_unknown_ones_are_refused(cluster: Cluster, hand: Hand) -> None:
    for name in ("a", "b"):
        job = train_job(name)
        job["metadata"]["labels"] = {"which": name}
        cluster.create(TRAIN_JOB, job)
        hand.event(name, "Happened", f"about {name}")
    assert [o["metadata"]["name"] for o in cluster.find(TRAIN_JOB, {"which": "b"})] == ["b"]
    assert cluster.find(TRAIN_JOB, {"which": "c"}) == []
    assert [o["message"] for o in cluster.find(EVENT, fields={"involvedObject.name": "a"})] == ["about a"]
    assert refused(cluster.find, TRAIN_JOB, fields={"spec.suspend": "true"})[0] == 400


def test_what_is_not_there_is_not_found(cluster: Cluster) -> None:
    assert cluster.get(TRAIN_JOB, "t1") is None
    cluster.delete(TRAIN_JOB, "t1")
    unknown = Kind("Widget", "example.org", "v1", "widgets")
    assert (
        refused(cluster.create, unknown, {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {}})[0] == 404
    )
    assert cluster.create(TRAIN_JOB, {**train_job(), "kind": "PyTorchJob"})["kind"] == "TrainJob"  # as a real one does
    elsewhere = Cluster(cluster.api_client, "no-such-namespace")
    assert refused(elsewhere.create, TRAIN_JOB, train_job())[0] == 404
    assert elsewhere.find(TRAIN_JOB) == []


def test_deletion_takes_what_is_owned_and_only_the_object_that_was_meant(cluster: Cluster, hand: Hand) -> None:
    job = cluster.create(TRAIN_JOB, train_job())
    pod = hand.pod(job | {"spec": {"trainer": {"image": "x"}}})
    cluster.delete(TRAIN_JOB, "t1", uid="another")
    assert cluster.get(TRAIN_JOB, "t1") is not None
    cluster.delete(TRAIN_JOB, "t1", uid=job["metadata"]["uid"])
    assert cluster.get(TRAIN_JOB, "t1") is None
    until(lambda: cluster.get(POD, pod) is None)


def test_an_object_whose_owner_nobody_has_is_collected(cluster: Cluster, hand: Hand) -> None:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "nobody"}
    orphan, other = train_job("orphan"), train_job("other")
    orphan["metadata"]["ownerReferences"] = [owner]
    cluster.create(TRAIN_JOB, orphan)
    cluster.create(TRAIN_JOB, other)
    until(lambda: cluster.get(TRAIN_JOB, "orphan") is None)
    assert cluster.get(TRAIN_JOB, "other") is not None  # the control
    owned = train_job("owned")
    owned["metadata"]["ownerReferences"] = [owner | {"uid": hand.workflow("w")["metadata"]["uid"]}]
    cluster.create(TRAIN_JOB, owned)
    time.sleep(0.4)
    assert cluster.get(TRAIN_JOB, "owned") is not None


def test_a_condition_of_a_workload_needs_its_time(cluster: Cluster, hand: Hand) -> None:
    job = cluster.create(TRAIN_JOB, train_job())
    hand.workload(job, QuotaReserved=("False", "Pending", "wait"))
    name = "trainjob-t1"
    bad = {"type": "Admitted", "status": "True", "reason": "Admitted", "message": ""}
    status, message = refused(hand.set_status, WORKLOAD, name, {"conditions": [bad]})
    assert status == 422
    assert "lastTransitionTime" in message


def test_a_pods_priority_class_must_exist(cluster: Cluster, hand: Hand) -> None:
    def pod(name: str, **spec: str) -> Object:
        body = {"containers": [{"name": "c", "image": "x"}], "schedulerName": "test", **spec}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}

    status, message = refused(cluster.create, POD, pod("a", priorityClassName="vthink-nobody"))
    assert status == 403
    assert "no PriorityClass with name vthink-nobody was found" in message
    assert cluster.create(POD, pod("b", priorityClassName="vthink-serving"))["spec"]["priority"] == 100000


def test_a_wrong_token_is_refused(cluster: Cluster, trouble: ApiServer) -> None:
    trouble.admin_token = "another"
    status, message = refused(cluster.get, TRAIN_JOB, "t1")
    assert status == 401
    assert "token" in message


def test_busy_and_broken_answers_are_tried_again(cluster: Cluster, trouble: ApiServer) -> None:
    cluster.create(TRAIN_JOB, train_job())
    trouble.fail(429, retry_after_s=0)
    trouble.fail(500)
    trouble.fail(None)
    assert cluster.get(TRAIN_JOB, "t1") is not None
    assert len(trouble.requests) == 5
    trouble.fail(429, times=1, retry_after_s=1)
    started = time.monotonic()
    cluster.get(TRAIN_JOB, "t1")
    assert time.monotonic() - started >= 0.9  # the server said when to come back


def test_patience_ends_and_a_refusal_is_not_tried_again(cluster: Cluster, trouble: ApiServer) -> None:
    cluster.patience_s = 0.3
    trouble.fail(503, times=1000, path="trainjobs")
    assert refused(cluster.get, TRAIN_JOB, "t1")[0] == 503
    before = len(trouble.requests)
    trouble.fail(403, path="pods")
    assert refused(cluster.get, POD, "p")[0] == 403
    assert len(trouble.requests) == before + 1


def test_a_change_is_made_again_when_somebody_else_wrote_in_between(cluster: Cluster) -> None:
    cluster.create(TRAIN_JOB, train_job())
    other = Cluster(cluster.api_client, cluster.namespace)
    interrupted = []

    def label(found: Object) -> Object:
        if not interrupted:
            interrupted.append(True)
            other.update(TRAIN_JOB, "t1", lambda o: {**o, "spec": {**o["spec"], "suspend": True}})
        found["metadata"]["labels"] = {"a": "b"}
        return found

    written = cluster.update(TRAIN_JOB, "t1", label)
    assert written["spec"]["suspend"] is True  # theirs is kept
    assert written["metadata"]["labels"] == {"a": "b"}


def follow(cluster: Cluster, said: list[str], tick_s: float = 1.0) -> tuple[list[Any], threading.Thread]:
    """Collects the states of job t1 that differ from the one before, until it is gone."""
    states: list[Any] = []

    def run() -> None:
        for found in cluster.follow(TRAIN_JOB, "t1", tick_s, said.append):
            state = None if found is None else found["spec"]["suspend"]
            if not states or states[-1] != state:
                states.append(state)
            if state is None and len(states) > 1:
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return states, thread


def pause(cluster: Cluster, value: bool) -> None:
    cluster.update(TRAIN_JOB, "t1", lambda o: {**o, "spec": {**o["spec"], "suspend": value}})


def test_a_watch_sees_every_change_and_the_end(cluster: Cluster) -> None:
    cluster.create(TRAIN_JOB, train_job())
    states, thread = follow(cluster, [])
    for value in (True, False, True):
        until(lambda: states)
        pause(cluster, value)
        until(lambda value=value: states[-1] is value)
    cluster.delete(TRAIN_JOB, "t1")
    thread.join(10)
    assert states == [False, True, False, True, None]


def test_an_expired_watch_begins_anew(cluster: Cluster, trouble: ApiServer) -> None:
    cluster.create(TRAIN_JOB, train_job())
    states, thread = follow(cluster, [])
    until(lambda: states == [False])

    def lists() -> int:
        return sum("watch=true" not in path and "limit" in path for _, path in trouble.requests)

    until(lambda: any("watch=true" in path for _, path in trouble.requests))
    assert lists() == 1
    trouble.expire()
    until(lambda: lists() == 2)
    pause(cluster, True)
    until(lambda: states == [False, True])
    cluster.delete(TRAIN_JOB, "t1")
    thread.join(10)
    assert states[-1] is None


def test_a_watch_outlives_an_api_that_is_away_and_says_so(cluster: Cluster, trouble: ApiServer) -> None:
    cluster.create(TRAIN_JOB, train_job())
    cluster.patience_s = 0.1
    said: list[str] = []
    states, thread = follow(cluster, said)
    until(lambda: states)
    trouble.fail(503, times=2, path="watch=true")
    trouble.fail(None, times=2, path="watch=true")
    until(lambda: any("still trying" in line for line in said))
    pause(cluster, True)
    until(lambda: states[-1] is True)
    until(lambda: any("answers again" in line for line in said))
    cluster.delete(TRAIN_JOB, "t1")
    thread.join(10)
    assert states == [False, True, None]


def test_a_watch_without_the_right_to_it_is_an_error(cluster: Cluster, trouble: ApiServer) -> None:
    forbidden = (
        'trainjobs.trainer.kubeflow.org is forbidden: User "u" cannot list resource "trainjobs" in API group "x"'
    )
    trouble.fail(403, path="trainjobs", message=forbidden)
    with pytest.raises(ClusterError, match="service account lacks the right"):
        next(cluster.follow(TRAIN_JOB, "t1"))
