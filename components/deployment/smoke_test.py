"""Held-out items asked again through the endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from ..common.answers.grading import is_correct
from ..common.rows.prepared import PreparedSet
from ..common.rows.sample import Media, Sample
from ..common.storage.manifest import Manifest
from ..common.storage.names import StorageError, fingerprint, sha256_file
from ..common.storage.s3 import Storage
from .client import API_KEY, AskError, ask
from .config import DeploymentConfig


class DeploymentError(RuntimeError):
    """The candidate did not go into service, and why; the champion is what it was."""


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
