"""The stage `deploy`: start the candidate's server, see that it says what evaluation saw, then make it the champion.

The smoke test asks held-out items again through the served endpoint, with the original files, and compares with the
answers that evaluation recorded. The champion moves only when they agree; otherwise it stays, and the error says why.
Everything here goes through HTTP, so this process needs no torch. On a cluster (``target: kserve``) the candidate is
rolled out beside the model in service (`rollout`) instead of being served here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from ... import __version__
from ..common.answers import is_correct
from ..common.cluster import Cluster
from ..common.config import RunContext
from ..common.launch import LaunchError, die_with_owner, free_port, git_commit, spawn, tail, wait_until_ready
from ..common.samples import Media, PreparedSet, Sample
from ..common.storage import Manifest, Storage, StorageError, fingerprint, join, sha256_file, stage_prefix
from ..common.tracking import Tracker
from . import rollout
from .client import API_KEY, AskError, ask
from .config import DeploymentConfig
from .registry import CHAMPION, ModelVersion, Registry

log = logging.getLogger(__name__)


class DeploymentError(RuntimeError):
    """The candidate did not go into service, and why; the champion is what it was."""


def run(run: str, config: str, registered: str, evaluation: str, data: str) -> str:
    """Smoke-test the registered candidate and promote it.

    Args:
        run: `RunContext` as JSON.
        config: `DeploymentConfig` as JSON.
        registered: manifest URI of the stage `register`.
        evaluation: manifest URI of the evaluation.
        data: manifest URI of the prepared data.

    Returns:
        URI of the manifest; ``details`` holds ``name``, ``version``, ``alias``, ``replaced`` (the version in service
        before), ``smoke`` (what was compared) and ``question`` (one question with its structured answer).

    Raises:
        DeploymentError: the server did not start or did not agree with evaluation; the champion stays.
    """
    die_with_owner()
    started = time.monotonic()
    context = RunContext.load(run, "run")
    section = DeploymentConfig.load(config, "deployment")
    storage = Storage(context.storage)
    candidate, evaluated, prepared = (Manifest.read(storage, uri) for uri in (registered, evaluation, data))
    version, source = int(candidate.details["version"]), candidate.files["model"]
    key = fingerprint(
        "deploy",
        section,
        [candidate.fingerprint, evaluated.fingerprint, prepared.fingerprint],
        candidate.details,
        context.redo.get("deploy", 0),
        __version__,
    )
    prefix = stage_prefix(context, "deploy", key)
    registry = Registry(context.tracking)
    before = registry.alias(CHAMPION)
    found = Manifest.find(storage, prefix)
    if found is not None and before is not None and before.version == version:
        log.info("deploy reused: %s", prefix)
        return found.manifest_uri
    in_service = f"version {before.version}" if before is not None else "nothing"
    inputs = {"registered": registered, "evaluation": evaluation, "data": data}
    with Tracker.start(context, "deploy", key, section.model_dump(mode="json"), inputs) as tracker:
        with contextlib.ExitStack() as stack:
            scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
            test = SmokeTest.prepare(storage, section, evaluated, data, scratch)
            smoke = deploy_version(context, section, registry.find(str(version)), storage, test, scratch)
            question = smoke.pop("question", None)
        storage.write_json(join(prefix, "smoke.json"), smoke)
        figures = {f"deployment/{name}": smoke[name] for name in ("agreement", "identical") if name in smoke}
        tracker.log_metrics(figures)
        tracker.set_tags({"vthink.model_version": str(version), "vthink.smoke_test": smoke["why"]})
        registry.tag(version, "vthink.smoke_test", smoke["why"][:500])
        if not smoke["passed"]:
            raise DeploymentError(
                f"version {version} of '{registry.name}' failed its smoke test and is not in service ({smoke['why']}); "
                f"in service stays {in_service}; details: {join(prefix, 'smoke.json')}"
            )
        registry.tag(version, "vthink.deploy_uri", join(prefix, "manifest.json"))
        registry.promote(version, smoke)
        manifest = Manifest(
            stage="deploy",
            fingerprint=key,
            uri=prefix,
            inputs=inputs,
            counts={"smoke_items": smoke["asked"]},
            metrics=figures,
            files={"model": source, "smoke": join(prefix, "smoke.json")},
            config=section.model_dump(mode="json"),
            details={
                "name": registry.name,
                "version": version,
                "alias": CHAMPION,
                "replaced": before.version if before is not None else None,
                "source": source,
                "smoke": {name: value for name, value in smoke.items() if name != "items"},
                "question": question,
            },
            mlflow_run_id=tracker.run_id,
            seconds=round(time.monotonic() - started, 3),
            git_commit=git_commit(),
        )
        return manifest.write(storage)


def deploy_version(
    context: RunContext,
    section: DeploymentConfig,
    version: ModelVersion,
    storage: Storage,
    test: SmokeTest,
    scratch: Path,
    hold: bool = False,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Test a version, and on a cluster bring it into service.

    Args:
        hold: on a cluster, stop with the candidate beside the model in service.
        cluster: None: the one at hand, where ``section.target`` asks for one.

    Returns:
        The record of the smoke test (see `smoke_test`); ``passed`` says whether the champion may move, ``promoted``
        (on a cluster) whether the version has all of the traffic, ``question`` is one structured answer.
    """
    smoke: dict[str, Any] = {"passed": False, "skipped": test.skipped}
    if not test.replays:
        reason = f"; the first: {test.skipped[0]}" if test.skipped else ""
        return smoke | {"why": f"no held-out item could be asked again{reason}"}
    try:
        if section.target == "local":
            with served(version.source, section, context, scratch) as url:
                smoke |= test(url)
                smoke["question"] = test.ask_one(url) if smoke["passed"] else None
            return smoke
        model = rollout.TrainedModel.read(storage, version.source)
        cluster = cluster or Cluster.connect(context.launch.cluster.namespace)
        way = rollout.Rollout(
            cluster, section, context.launch, version, model, lambda line: log.warning("deploy: %s", line)
        )
        smoke |= way.run(test, hold)
        with contextlib.suppress(AskError):  # it is in service already; this is only for show
            smoke["question"] = test.ask_one(way.url(rollout.variant(version.version)))
        return smoke
    except rollout.SmokeTestError as error:
        return smoke | error.record
    except (LaunchError, AskError, rollout.RolloutError) as error:
        return smoke | {"passed": False, "why": str(error)}


def deploy_registered(
    context: RunContext, section: DeploymentConfig, version: ModelVersion, storage: Storage, hold: bool = False
) -> dict[str, Any]:
    """Deploy a version again, outside of the pipeline: what it is compared with is in its tags.

    Returns:
        The record of the smoke test, see `deploy_version`.

    Raises:
        DeploymentError: it did not go into service; the champion is what it was.
    """
    missing = [tag for tag in ("vthink.evaluation_uri", "vthink.data_uri") if not version.tags.get(tag)]
    if missing:
        raise DeploymentError(
            f"version {version.version} of '{version.name}' has no tag {missing[0]}: it was not registered by vthink, "
            "so there is nothing to compare its answers with"
        )
    evaluated = Manifest.read(storage, version.tags["vthink.evaluation_uri"])
    registry = Registry(context.tracking)
    with contextlib.ExitStack() as stack:
        scratch = Path(context.work_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-")))
        test = SmokeTest.prepare(storage, section, evaluated, version.tags["vthink.data_uri"], scratch)
        smoke = deploy_version(context, section, version, storage, test, scratch, hold)
    registry.tag(version.version, "vthink.smoke_test", smoke["why"][:500])
    if not smoke["passed"]:
        before = registry.alias(CHAMPION)
        in_service = f"version {before.version}" if before is not None else "nothing"
        raise DeploymentError(
            f"version {version.version} of '{version.name}' is not in service ({smoke['why']}); "
            f"in service stays {in_service}"
        )
    if smoke.get("promoted", True):
        registry.promote(version.version, smoke)
    return smoke


@contextlib.contextmanager
def served(source: str, section: DeploymentConfig, context: RunContext, scratch: Path) -> Iterator[str]:
    """The candidate's server on a free port of this machine, ready; yields its URL and stops it at the end.

    Raises:
        LaunchError: it did not start, with the last it said.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = section.server.model_copy(update={"host": "127.0.0.1", "port": port})
    command = [sys.executable, "-m", f"{__package__}.server", "--model", source, "--config", server.to_json()]
    command += ["--storage", context.storage.to_json(), "--cache-dir", str(scratch)]
    server_log = scratch / "logs" / f"server-{port}.log"
    with spawn(command, log=server_log) as process, httpx.Client(trust_env=False, timeout=5) as client:

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return client.get(f"{url}/v2/health/ready").status_code == 200
            return False

        wait_until_ready(process, "the model server", ready, section.start_timeout_s)
        try:
            yield url
        except AskError as error:
            if process.poll() is not None:
                last = (tail(server_log) or ["nothing in its log"])[-1]
                raise LaunchError(
                    f"the model server ended during the smoke test: {last} (log: {server_log})"
                ) from error
            raise


def _items(storage: Storage, evaluated: Manifest) -> list[dict[str, Any]]:
    """The candidate's answers on frames in order, as evaluation recorded them, without those that failed there."""
    rows = [json.loads(line) for line in storage.read_bytes(evaluated.files["items"]).splitlines()]
    candidate = evaluated.details["candidate"]
    return [r for r in rows if r["model"] == candidate and r["frames"] == "ordered" and not r["error"]]


@dataclass(frozen=True, slots=True)
class Replay:
    """A held-out item that is asked again."""

    sample: Sample
    path: Path
    """The original file."""
    item: Mapping[str, Any]
    """The row of evaluation's ``items.jsonl``."""

    def ask(self, url: str, **more: Any) -> dict[str, Any]:
        """Ask the item's question (or another one, given in ``more``) about its media."""
        media = self.sample.media
        asked = {
            "question": self.sample.question,
            "options": self.sample.options,
            "problem_type": self.sample.problem_type,
            **more,
        }
        return ask(url, self.path, kind=media.kind, start_s=media.start_s, end_s=media.end_s, **asked)


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """Held-out items to ask again of any server of the candidate."""

    replays: Sequence[Replay]
    skipped: Sequence[str]
    """Why items were passed over."""
    limit: int
    """Longest answer, in tokens."""
    settings: Mapping[str, Any]
    """Evaluation's section."""
    section: DeploymentConfig

    @classmethod
    def prepare(
        cls, storage: Storage, section: DeploymentConfig, evaluated: Manifest, data: str, scratch: Path
    ) -> SmokeTest:
        """Choose the items and fetch their media."""
        samples = PreparedSet.open(storage, data, scratch).split(evaluated.config["split"]).samples
        items = _items(storage, evaluated)
        if cls._is_plain(section):  # such a server sees whole videos only
            whole = {s.id for s in samples if s.media.start_s is None and s.media.end_s is None}
            items = [item for item in items if item["id"] in whole]
        limit = min(int(evaluated.config["max_new_tokens"]), section.server.max_new_tokens)
        chosen = choose(storage, samples, items, limit, section.smoke_items, scratch, section.smoke_kinds)
        return cls(*chosen, limit, evaluated.config, section)

    @staticmethod
    def _is_plain(section: DeploymentConfig) -> bool:
        return section.target == "kserve" and section.kserve.model_format == "vLLM"

    @property
    def _how(self) -> dict[str, Any]:
        key = {"api_key": os.environ.get(API_KEY)}
        if self.section.target == "local":
            return key
        return {**key, "plain": self._is_plain(self.section), "model": self.section.kserve.name}

    def __call__(self, url: str) -> dict[str, Any]:
        """See `smoke_test`; a server that goes away has failed it."""
        health = "/health" if self._is_plain(self.section) else "/v2/health/ready"
        minimum = self.section.smoke_min_agreement
        return smoke_test(url, self.replays, self.limit, self.settings, minimum, health, self._how)

    def ask_one(self, url: str) -> dict[str, Any]:
        """One question as a user would ask it."""
        return _ask_one(url, self.replays[0], self.section.smoke_question, self._how)


def choose(
    storage: Storage,
    samples: Sequence[Sample],
    items: Sequence[Mapping[str, Any]],
    limit: int,
    count: int,
    scratch: Path,
    kinds: Sequence[str] = (),
) -> tuple[list[Replay], list[str]]:
    """The items to ask again, always the same ones, and why others were passed over.

    Args:
        storage: where ``s3://`` media are.
        samples: rows of the held-out split.
        items: rows of evaluation's ``items.jsonl``; those of more than ``limit`` tokens cannot be repeated.
        limit: longest answer of the server, in tokens.
        count: how many.
        scratch: for downloaded media.
        kinds: only items whose ``metadata.kind`` is one of these; empty: any.
    """
    by_id = {s.id: s for s in samples if not kinds or s.metadata.get("kind") in kinds}
    usable = [item for item in items if item["id"] in by_id and len(item["token_ids"]) <= limit]
    usable.sort(key=lambda item: fingerprint("smoke", item["id"]))  # neighbours in a data set are alike
    replays: list[Replay] = []
    skipped: list[str] = []
    for item in usable:
        if len(replays) == count or len(skipped) == 8 * count:
            break
        sample = by_id[item["id"]]
        try:
            replays.append(Replay(sample, local_copy(storage, sample.media, scratch), item))
        except (OSError, StorageError, DeploymentError) as error:
            skipped.append(f"{sample.id}: {error}")
    return replays, skipped


def smoke_test(
    url: str,
    replays: Sequence[Replay],
    limit: int,
    settings: Mapping[str, Any],
    min_agreement: float,
    health: str = "/v2/health/ready",
    how: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask held-out items again through the endpoint and compare with evaluation.

    Args:
        url: the server.
        replays: what to ask, at least one.
        limit: longest answer, in tokens.
        settings: evaluation's section (``temperature``, ``top_p``, ``seed``).
        min_agreement: share that must agree.
        health: path at which the server says that it is ready.
        how: further arguments of `client.ask`.

    Returns:
        ``passed``, ``why`` (one line), ``asked``, ``agreement`` (share with evaluation's answer), ``identical`` (share
        with its very tokens), ``correct`` (share of right answers), ``items`` (each comparison).

    Raises:
        AskError: the server is gone.
    """
    sampling = {name: settings[name] for name in ("temperature", "top_p", "seed")}
    compared: list[dict[str, Any]] = []
    for replay in replays:
        expected = replay.item
        entry: dict[str, Any] = {"id": replay.sample.id, "expected": expected["answer"], "answer": None, "error": None}
        try:
            reply = replay.ask(url, max_tokens=limit, **sampling, **(how or {}))
        except AskError as error:
            entry["error"] = str(error)
            _still_there(url + health, error)
        else:
            # Two responses without an answer agree only when they are the same.
            same = reply["text"] == expected["response"] if expected["answer"] is None else True
            entry["answer"] = reply["answer"]
            entry["agrees"] = same and reply["answer"] == expected["answer"]
            entry["correct"] = is_correct(replay.sample, reply["answer"])
            entry["identical"] = reply["token_ids"] == list(expected["token_ids"])
            if not entry["identical"]:
                entry |= {"text": reply["text"], "expected_text": expected["response"]}
        compared.append(entry)
    # What was drawn at random cannot be drawn again; a nucleus this small is greedy (Video-R1 evaluates with 0.001).
    repeatable = settings["temperature"] == 0 or settings["top_p"] <= 0.01
    passed, why = _verdict(compared, repeatable, min_agreement)
    shares = {
        name: sum(bool(entry.get(key)) for entry in compared) / len(compared)
        for name, key in (("agreement", "agrees"), ("identical", "identical"), ("correct", "correct"))
    }
    return {"passed": passed, "why": why, "asked": len(compared), **shares, "items": compared}


def _verdict(compared: Sequence[Mapping[str, Any]], repeatable: bool, min_agreement: float) -> tuple[bool, str]:
    """Whether the smoke test passed, and a line that says so."""
    asked, agreed = len(compared), sum(bool(entry.get("agrees")) for entry in compared)
    said = f"{agreed} of {asked} held-out items got the answer that evaluation saw"
    failed = [entry for entry in compared if entry["error"]]
    if failed:
        return False, f"{len(failed)} of {asked} held-out items got no answer: {failed[0]['error']}"
    if not repeatable:
        return True, f"{said}; evaluation sampled, so they need not agree"
    if agreed < min_agreement * asked:
        other = next(entry for entry in compared if not entry.get("agrees"))
        example = f"{other['id']}: served {other['answer']!r}, evaluation {other['expected']!r}"
        return False, f"{said}, {min_agreement:.0%} must ({example})"
    return True, said


def _still_there(url: str, error: AskError) -> None:
    """Raise ``error`` when the server does not even say that it is ready."""
    try:
        httpx.get(url, trust_env=False, timeout=10).raise_for_status()
    except httpx.HTTPError:
        raise error from None


def local_copy(storage: Storage, media: Media, scratch: Path) -> Path:
    """The original file of a row: where it is, or downloaded once; its checksum is checked.

    Raises:
        DeploymentError: it is not the file that the row was prepared from.
    """
    path = Path(media.uri)
    if media.uri.startswith("s3://"):
        path = scratch / "media" / (fingerprint(media.uri) + PurePosixPath(media.uri).suffix)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.download_file(media.uri, path)
    if media.sha256 is not None and sha256_file(path) != media.sha256:
        raise DeploymentError(f"{media.uri} has changed since the data was prepared")
    return path


def _ask_one(url: str, replay: Replay, own_question: str | None, how: Mapping[str, Any]) -> dict[str, Any]:
    """Ask one question as a user would, streaming, and keep its structured answer."""
    sample = replay.sample
    if own_question is None:
        question, options, truth, problem_type = sample.question, sample.options, sample.answer, sample.problem_type
    else:
        question, options, truth, problem_type = own_question, (), None, None
    reply = replay.ask(
        url, question=question, options=options, problem_type=problem_type, on_delta=lambda text: None, **how
    )
    names = ("answer", "reasoning", "segments", "text", "finish_reason", "media")
    kept = {name: reply.get(name) for name in names}  # vLLM does not say which frames it took
    about = {"id": sample.id, "media_uri": sample.media.uri, "question": question, "options": list(options)}
    return {**about, "truth": truth, **kept}
