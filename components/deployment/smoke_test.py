"""Held-out items asked again through an endpoint: which ones, and whether it answers as evaluation saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from pydantic import AliasChoices, BaseModel, Field

from ..common.answers.grading import is_correct
from ..common.chat_endpoint.config import is_loopback
from ..common.chat_endpoint.endpoint import BlockingEndpoint, EndpointError
from ..common.errors import UserError
from ..common.rows.prepared import PreparedSet
from ..common.rows.sample import Media, Sample
from ..common.storage.manifest import Manifest
from ..common.storage.names import fingerprint, sha256_file
from ..common.storage.s3 import Storage
from .ask import FileQuestion, ask, served_endpoint
from .config import DeploymentConfig


class EvaluationSettings(BaseModel, frozen=True):
    """What of evaluation's settings the smoke test repeats."""

    split: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


class RecordedAnswer(BaseModel, frozen=True):
    """A row of evaluation's ``items.jsonl``."""

    id: str
    model: str
    condition: str = Field(validation_alias=AliasChoices("condition", "frames"))
    error: str | None = None
    answer: str | None = None
    response: str | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """A held-out item that is asked again, with its original file and evaluation's answer."""

    sample: Sample
    path: Path
    recorded: RecordedAnswer

    @property
    def question(self) -> FileQuestion:
        """What is asked."""
        sample, media = self.sample, self.sample.media
        return FileQuestion(
            path=self.path, text=sample.question, options=sample.options, problem_type=sample.problem_type,
            kind=media.kind, start_s=media.start_s, end_s=media.end_s,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A held-out item asked again: evaluation's answer and the server's (or why there is none), whether they agree, or
    are token by token ``identical``, and the responses where they are not."""

    id: str
    expected: str | None
    answer: str | None = None
    error: str | None = None
    agrees: bool = False
    identical: bool = False
    correct: bool = False
    text: str | None = None
    expected_text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StableResult:
    """The same items asked of the model in service: its share of right answers; None: it could not be asked."""

    name: str | None
    correct: float | None
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeTestResult:
    """Whether an endpoint answers as evaluation saw, in one line, and why items were passed over."""

    passed: bool
    why: str
    items: tuple[Comparison, ...] = ()
    skipped: tuple[str, ...] = ()
    stable: StableResult | None = None  # on a cluster, where something is in service

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the items whose answer agrees, is identical, is correct; empty without items."""
        names = {"agreement": "agrees", "identical": "identical", "correct": "correct"}
        count = len(self.items)
        return {k: sum(getattr(item, v) for item in self.items) / count for k, v in names.items()} if count else {}

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged."""
        return {f"deployment/{name}": share for name, share in self.shares.items() if name != "correct"}

    def to_json(self) -> dict[str, Any]:
        """The record that is kept (``smoke.json``)."""
        return dataclasses.asdict(self) | {"asked": len(self.items), **self.shares}


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """Held-out items to ask again, for up to ``limit`` tokens, and why others were passed over."""

    replays: Sequence[Replay]
    skipped: Sequence[str]
    limit: int
    settings: EvaluationSettings
    section: DeploymentConfig

    @classmethod
    def prepare(
        cls, storage: Storage, section: DeploymentConfig, evaluated: Manifest, data: str, scratch: Path
    ) -> SmokeTest:
        """Choose the items, always the same ones, of the prepared data (manifest URI), and fetch their media. What
        failed in the evaluation, and answers that are longer than the server's may be, are left out."""
        settings = EvaluationSettings.model_validate(evaluated.config)
        limit, count = min(settings.max_new_tokens, section.server.max_new_tokens), section.smoke_items
        prepared = PreparedSet.open(storage, data, scratch).split(settings.split)
        samples = {sample.id: sample for sample in prepared.samples}
        rows = map(RecordedAnswer.model_validate_json, storage.read_bytes(evaluated.files["items"]).splitlines())
        candidate = evaluated.details["candidate"]
        usable = [
            row
            for row in rows
            if row.model == candidate and row.condition == "ordered" and not row.error
            and row.id in samples and _can_be_asked(samples[row.id], section) and len(row.token_ids) <= limit
        ]  # fmt: skip
        usable.sort(key=lambda row: fingerprint("smoke", row.id))  # neighbours in a data set are alike
        replays, skipped = list[Replay](), list[str]()
        for row in usable:
            if len(replays) == count or len(skipped) == 8 * count:
                break
            try:
                replays.append(Replay(samples[row.id], _original(storage, samples[row.id].media, scratch), row))
            except (OSError, UserError) as error:
                skipped.append(f"{row.id}: {error}")
        return cls(replays, skipped, limit, settings, section)

    def run(self, url: str) -> SmokeTestResult:
        """Ask the items and compare with evaluation; at least one must be there. EndpointError: the server is gone."""
        with self._endpoint(url) as endpoint:
            items = tuple(self._compare(url, endpoint, replay) for replay in self.replays)
        passed, why = self._verdict(items)
        return SmokeTestResult(passed=passed, why=why, items=items, skipped=tuple(self.skipped))

    def ask_one(self, url: str) -> dict[str, Any]:
        """One question as a user would ask it, streamed, with its structured answer, for people to see."""
        sample, question, own = self.replays[0].sample, self.replays[0].question, self.section.smoke_question
        if own is not None:
            question = dataclasses.replace(question, text=own, options=(), problem_type=None)
        with self._endpoint(url) as endpoint:
            answer = ask(endpoint, question, on_delta=lambda _: None, plain=self.section.serves_plain_vllm)
        about = {"id": sample.id, "media_uri": sample.media.uri, "truth": sample.answer if own is None else None}
        kept = ("answer", "reasoning", "segments", "text", "finish_reason", "media")
        asked = {"question": question.text, "options": list(question.options)}
        return about | asked | {name: value for name, value in answer.to_json().items() if name in kept}

    def _endpoint(self, url: str) -> BlockingEndpoint:
        model = "" if self.section.target == "local" else self.section.kserve.name
        return BlockingEndpoint(served_endpoint(url, model))

    def _compare(self, url: str, endpoint: BlockingEndpoint, replay: Replay) -> Comparison:
        recorded, sampling = replay.recorded, self.settings.model_dump(include={"temperature", "top_p", "seed"})
        sampling["max_tokens"] = self.limit
        try:
            served = ask(endpoint, replay.question, sampling, plain=self.section.serves_plain_vllm)
        except EndpointError as error:
            health = "/health" if self.section.serves_plain_vllm else "/v2/health/ready"
            try:
                httpx.get(url + health, trust_env=not is_loopback(url), timeout=10).raise_for_status()
            except httpx.HTTPError:  # it does not even say that it is ready
                raise error from None
            return Comparison(id=recorded.id, expected=recorded.answer, error=str(error))
        text, answer = served.reply.text, served.view.answer
        # Two responses without an answer agree only when they are the same.
        agrees = answer == recorded.answer and (answer is not None or text == recorded.response)
        identical = served.reply.token_ids == recorded.token_ids
        return Comparison(
            id=recorded.id, expected=recorded.answer, answer=answer, agrees=agrees,
            identical=identical, correct=is_correct(replay.sample, answer),
            text=None if identical else text, expected_text=None if identical else recorded.response,
        )  # fmt: skip

    def _verdict(self, items: Sequence[Comparison]) -> tuple[bool, str]:
        minimum, count = self.section.smoke_min_agreement, len(items)
        if failed := [item for item in items if item.error]:
            return False, f"{len(failed)} of {count} held-out items got no answer: {failed[0].error}"
        agreed = sum(item.agrees for item in items)
        line = f"{agreed} of {count} held-out items got the answer that evaluation saw"
        # What was drawn at random cannot be drawn again; a nucleus of 0.01 is greedy (Video-R1 evaluates with 0.001).
        if self.settings.temperature != 0 and self.settings.top_p > 0.01:
            return True, f"{line}; evaluation sampled, so they need not agree"
        if agreed < minimum * count:
            other = next(item for item in items if not item.agrees)
            example = f"{other.id}: served {other.answer!r}, evaluation {other.expected!r}"
            return False, f"{line}, {minimum:.0%} must ({example})"
        return True, line


def _can_be_asked(sample: Sample, section: DeploymentConfig) -> bool:
    if section.serves_plain_vllm and (sample.media.start_s, sample.media.end_s) != (None, None):
        return False  # such a server sees whole videos only
    return not section.smoke_kinds or sample.metadata.get("kind") in section.smoke_kinds


def _original(storage: Storage, media: Media, scratch: Path) -> Path:
    """The original file of a row: where it is, or downloaded once; its checksum is checked."""
    path = Path(media.uri)
    if media.uri.startswith("s3://"):
        path = scratch / "media" / (fingerprint(media.uri) + PurePosixPath(media.uri).suffix)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.download_file(media.uri, path)
    if media.sha256 is not None and sha256_file(path) != media.sha256:
        raise UserError(f"{media.uri} has changed since the data was prepared")
    return path
