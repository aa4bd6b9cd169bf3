"""Curation: reasoning traces for training, written by a teacher and checked, by a judge or by the rule reward.

`hindsight` (Video-Thinker, arXiv 2510.23473). From captioned segments the teacher writes a question that needs several
of them; for a question without segments it looks at the video and writes captions of those that its answer rests on.
Knowing the answer it then writes a trace ("reverse curation"): segments with time, caption and thought, and the
reasoning. A judge that sees only the times and captions of the trace must find the answer; else the trace is written
again, a few times.

`cot` (Video-R1, arXiv 2503.21776). The teacher answers the question several times; traces whose format is right and
whose answer earns more than a threshold of the rule reward are kept.

Every answered call, and what became of every row, is in a journal that is synced to disk before anything else happens
with it. A run that was killed, or stopped by its budget, asks nothing twice that is in there; what a call is known by
is its row, its step and attempt, and the words that were sent, so a changed prompt is asked afresh.

What models write is hostile until checked: JSON of exactly the asked shape, no tags and no control characters, letters
among the options, times inside the video and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import math
import os
import signal
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .... import __version__
from ...common.answers.grading import is_correct
from ...common.answers.responses import parse_response
from ...common.html.images import jpeg
from ...common.html.page import data_uri
from ...common.rows.files import RowError, to_line
from ...common.rows.sample import Evidence, Media, Sample
from ...common.storage.names import canonical_json
from ...common.storage.s3 import Storage
from ...common.video.clip import Clip, DecodeError
from ...common.video.config import VideoConfig
from ...common.video.workers import Decoder
from ..config import CurationConfig
from ..objects import FormatError
from ..source import HUB, fetch_from_hub, open_source
from .endpoint import Account, CallFailedError, Endpoint, EndpointError, Reply, StoppedError
from .items import _BEYOND_END_S, CurateError, Item, _DropError, read_items
from .journal import Journal
from .prompts import STEPS, Prompts
from .replies import (
    UnusableError,
    as_asked,
    checked_captions,
    checked_cot,
    checked_question,
    checked_trace,
    clean,
    listed,
    with_options,
)

_ABOUT_MEDIA = ("missing_media", "damaged_media", "not_a_video", "bad_segments")
"""Reasons that cost no call and may be gone tomorrow: found anew each time, not journalled."""


@dataclass
class Summary:
    """What came of a source."""

    items: int = 0
    """Videos or questions in it."""
    decided: int = 0
    """Of those, the ones of which it is known what comes of them."""
    rows: int = 0
    """Rows written."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Items of which nothing came, by reason."""
    failed: list[str] = field(default_factory=list)
    """Items whose calls failed, with the reason; they are asked again when the command is repeated."""
    account: Account = field(default_factory=Account)
    """Calls, tokens and money; those of this run, but for the money, which is that of all runs."""
    replayed: int = 0
    """Answers that came from the journal."""

    @property
    def complete(self) -> bool:
        """Whether every item is decided."""
        return self.decided == self.items


Progress = Callable[[Summary], None]


def curate(
    source: str | Path,
    output: Path,
    config: CurationConfig,
    storage: Storage | None = None,
    progress: Progress = lambda summary: None,
    format_name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Summary:
    """Write the training rows that come of a source.

    Beside ``output``: ``<name>.journal.jsonl``, from which a repeated call goes on, and ``<name>.dropped.jsonl``, which
    says why nothing came of an item. The output is written whenever this returns, with what is decided so far.

    Args:
        source: a path, an ``s3://`` or an ``hf://`` URI; see `read_items` for what it may hold.
        output: ``.jsonl`` to write.
        config: how.
        storage: where the source or media with ``s3://`` URIs are.
        progress: called when an item is decided.
        format_name, roots: see `read_items`.

    Raises:
        CurateError, UserError, FormatError: the source, the prompts or the journal cannot be used.
        EndpointError: a server cannot be used as it is set up; what is decided has been written.
        KeyboardInterrupt: asked to stop (SIGINT, SIGTERM); calls under way were waited for, what is decided has been
            written.
    """
    config = _checked(source, output, config)
    with tempfile.TemporaryDirectory(prefix="vthink-curate-") as folder:
        found = open_source(str(source), storage, Path(folder))
        items = functools.partial(read_items, found, config, format_name, roots)
        if next(items(), None) is None:
            raise CurateError(f"{source}: there are no rows in it")
        run = _Run(items, config, storage, progress)
        output.parent.mkdir(parents=True, exist_ok=True)
        with Journal(output.with_suffix(".journal.jsonl")) as journal:
            try:
                asyncio.run(run.work(journal))
            except asyncio.CancelledError:
                pass  # interrupted twice
            finally:
                run.write(output)
    if run.interrupted:
        raise KeyboardInterrupt
    if run.summary.account.error is not None:
        raise run.summary.account.error
    return run.summary


def _checked(source: str | Path, output: Path, config: CurationConfig) -> CurationConfig:
    """The settings with a name for the source, when the output can be written."""
    if output.suffix.lower() != ".jsonl":
        raise CurateError(f"{output}: rows are written as .jsonl")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise CurateError(f"{output}: is the source; choose another file for the output")
    if output.exists() and not output.with_suffix(".journal.jsonl").exists():
        raise CurateError(f"{output}: is there already, without the journal of a curation; choose another file")
    return config if config.source else config.model_copy(update={"source": Path(source).stem})


class _Run:
    """One call of `curate`."""

    journal: Journal

    def __init__(
        self,
        items: Callable[[], Iterator[Item | RowError]],
        config: CurationConfig,
        storage: Storage | None,
        progress: Progress,
    ):
        self._items, self.config = items, config
        self.prompts = Prompts.read(config.prompts)
        self.summary = Summary(account=Account(config.budget_usd))
        self.interrupted = False
        self._storage, self._progress = storage, progress
        self._settings = _settings(config, self.prompts)
        self._unusable: dict[str, dict[str, Any]] = {}
        self._teacher = Endpoint("teacher", config.teacher, self.summary.account)
        self._judge = Endpoint("judge", config.judge, self.summary.account) if config.method == "hindsight" else None

    async def work(self, journal: Journal) -> None:
        """Decide every item that is not decided yet."""
        self.journal, config = journal, self.config
        self.summary.account.usd = journal.spent_usd
        for item in self._items():
            self.summary.items += 1
            self._check_store(item)
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # only in the main thread
                loop.add_signal_handler(number, self._interrupt, task)
        async with contextlib.AsyncExitStack() as stack:
            at_once = 0
            for endpoint in (self._teacher, self._judge):
                if endpoint is not None:
                    await stack.enter_async_context(endpoint)
                    at_once += endpoint.config.concurrency
            video = VideoConfig(num_frames=config.num_frames, max_pixels=config.max_pixels)
            self._decoder = stack.enter_context(Decoder(video, min(at_once, len(os.sched_getaffinity(0)))))
            # Items are taken from the source only as fast as they are worked off.
            items = self._items()
            ended = await asyncio.gather(*(self._worker(items) for _ in range(at_once)), return_exceptions=True)
        for error in ended:  # raised only now, when every call under way has ended and is journalled
            if error is not None:
                raise error

    def _check_store(self, item: Item | RowError) -> None:
        if self._storage is None and isinstance(item, Item) and item.media.uri.startswith("s3://"):
            raise CurateError(f"{item.media.uri} is in a store; say which one (storage.endpoint_url)")

    def _interrupt(self, task: asyncio.Task[None] | None) -> None:
        """The first time, let the calls under way end (they are paid for); the second time, leave."""
        if self.interrupted and task is not None:
            task.cancel()
            return
        self.interrupted = True
        self.summary.account.stop("interrupted")
        print("waiting for the calls under way; interrupt again to leave at once", file=sys.stderr, flush=True)

    async def _worker(self, items: Iterator[Item | RowError]) -> None:
        account = self.summary.account
        for item in items:
            if account.stopped.is_set():
                return
            if isinstance(item, Item):
                try:
                    if not await self._decide(item):
                        continue
                except (StoppedError, EndpointError):
                    return
                except Exception as error:
                    account.stop(f"{item.id}: {error}")  # the other workers end their calls first
                    raise
            self.summary.decided += 1
            self._progress(self.summary)

    async def _decide(self, item: Item) -> bool:
        """Find out what comes of an item, and journal it; False when its calls failed."""
        digest = item.digest(self._settings)
        if self.journal.find(digest) is not None:
            return True
        try:
            rows = await self._rows(item)
        except _DropError as drop:
            outcome = {"id": item.id, "dropped": drop.reason, "detail": str(drop)}
            if drop.reason in _ABOUT_MEDIA:
                self._unusable[digest] = outcome
            else:
                self.journal.add(digest, **outcome)
        except CallFailedError as error:
            self.summary.failed.append(f"{item.id}: {error}")
            self._progress(self.summary)
            return False
        else:
            self.journal.add(digest, id=item.id, rows=[to_line(row) for row in rows])
        return True

    async def _rows(self, item: Item) -> list[Sample]:
        clip = await asyncio.to_thread(self._clip, item.media)
        if self.config.method == "cot":
            return await self._cot(item, clip)
        return [await self._hindsight(item, clip)]

    def _clip(self, media: Media) -> Clip:
        """The frames, which also say how long the video is; in a thread."""
        with contextlib.ExitStack() as stack:
            path = Path(media.uri)
            if media.uri.startswith("s3://"):
                assert self._storage is not None  # _check_store
                if not self._storage.exists(media.uri):
                    raise _DropError("missing_media", f"there is no object {media.uri}")
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vthink-curate-"))
                path = Path(folder) / ("media" + Path(media.uri).suffix[:8])
                self._storage.download_file(media.uri, path)
            elif media.uri.startswith(HUB):
                try:
                    path = fetch_from_hub(media.uri)
                except FormatError as error:
                    raise _DropError("missing_media", str(error)) from None
            try:
                if not path.is_file():
                    raise _DropError("missing_media", f"there is no file {media.uri}")
                return self._decoder.read(path, media.kind, media.start_s, media.end_s)
            except OSError as error:
                raise _DropError("missing_media", f"{media.uri}: {error.strerror or error}") from None
            except DecodeError as error:
                raise _DropError("damaged_media", f"{media.uri}: {error}") from None

    # --- Video-Thinker ----------------------------------------------------------------------------------------

    async def _hindsight(self, item: Item, clip: Clip) -> Sample:
        config = self.config
        assert self._judge is not None
        if clip.kind != "video":
            raise _DropError("not_a_video", "an image has no segments")
        steps, malformed = ["trace", "judge"], 0
        segments = _inside(item.segments, clip.duration_s)
        sample = item.sample
        if sample is None:
            if len(segments) < config.min_segments:
                raise _DropError(
                    "bad_segments", f"{len(segments)} captioned segments; {config.min_segments} are needed"
                )
            told = {name: getattr(config, name) for name in ("min_segments", "min_options", "max_options")}
            prompt = self.prompts.render("question", segments=listed(segments), **told)
            sample, again = await self._usable(
                item, "question", 0, prompt, lambda text: checked_question(text, item.id, item.media, segments, config)
            )
            steps, malformed = ["question", *steps], malformed + again
        elif not segments:
            answer = _in_words(sample)
            prompt = self.prompts.render(
                "captions", question=with_options(sample), answer=answer, duration_s=clip.duration_s
            )
            segments, again = await self._usable(
                item, "captions", 0, prompt, lambda text: checked_captions(text, clip.duration_s), clip
            )
            steps, malformed = ["captions", *steps], malformed + again
        question, failed_captions, said = sample, None, None
        for attempt in range(config.max_regenerations + 1):
            prompt = self.prompts.render(
                "trace",
                segments=listed(segments),
                question=with_options(question),
                answer=_in_words(question),
                failed_captions=failed_captions,
            )
            row, again = await self._usable(
                item, "trace", attempt, prompt, lambda text: checked_trace(text, question, segments)
            )
            malformed += again
            prompt = self.prompts.render("judge", segments=listed(row.evidence), question=as_asked(question))
            looked = clip if config.judge_sees_video else None
            said = parse_response(
                (await self._call(self._judge, item, "judge", attempt, 0, prompt, looked)).text
            ).answer
            right = is_correct(question, said)
            if right or (attempt == config.max_regenerations and config.when_never_right == "keep"):
                provenance = {
                    "method": "hindsight",
                    "teacher": config.teacher.model,
                    "judge": config.judge.model,
                    "prompts": self.prompts.hashes(steps),
                    "attempts": attempt + 1,
                    "malformed": malformed,
                    "verdict": "right" if right else "wrong",
                    "judge_answer": None if said is None else said[:200],
                    "vthink": __version__,
                }
                return _stamped(row, provenance)
            failed_captions = [segment.caption for segment in row.evidence]
        raise _DropError(
            "judge_wrong", f"{config.max_regenerations + 1} traces; from the last the judge answered {said!r:.80}"
        )

    async def _usable(
        self, item: Item, step: str, attempt: int, prompt: str, check: Callable[[str], Any], clip: Clip | None = None
    ) -> tuple[Any, int]:
        """The teacher's checked reply, and how many before it could not be used; each is asked for with what was
        wrong with the one before."""
        asked, problem = prompt, ""
        for number in range(self.config.max_malformed + 1):
            reply = await self._call(self._teacher, item, step, attempt, number, asked, clip)
            try:
                if not reply.finished:
                    raise UnusableError("it was cut off before its end (max_tokens)")
                return check(reply.text), number
            except UnusableError as error:
                problem = str(error)
                asked = f"{prompt}\n\nAn earlier reply could not be used: {problem}"
        raise _DropError("malformed_reply", f"{step}, {self.config.max_malformed + 1} times; the last: {problem}")

    # --- Video-R1 ---------------------------------------------------------------------------------------------

    async def _cot(self, item: Item, clip: Clip) -> list[Sample]:
        config, sample = self.config, item.sample
        if sample is None:
            raise _DropError("bad_segments", "cot needs questions, not captioned segments")
        prompt = self.prompts.render("cot", question=as_asked(sample))
        replies = await asyncio.gather(
            *(self._call(self._teacher, item, "cot", k, 0, prompt, clip) for k in range(config.num_traces)),
            return_exceptions=True,
        )
        failed = [reply for reply in replies if isinstance(reply, BaseException)]
        if failed:  # only now, when the other calls have ended and are journalled
            raise failed[0]
        graded = [checked_cot(reply.text, sample) for reply in replies if isinstance(reply, Reply)]
        passed = sorted((g for g in graded if g[0] > config.min_reward), key=lambda g: -g[0])
        if not passed:
            best = max(reward for reward, _ in graded)
            raise _DropError("low_reward", f"{config.num_traces} traces, the best earned {best:.2f}")
        rows = []
        for number, (reward, reasoning) in enumerate(passed[: config.max_kept]):
            provenance = {
                "method": "cot",
                "teacher": config.teacher.model,
                "prompts": self.prompts.hashes(["cot"]),
                "attempts": config.num_traces,
                "verdict": "above the threshold",
                "reward": round(reward, 4),
                "pass_rate": len(passed) / config.num_traces,
                "vthink": __version__,
            }
            update = {"id": f"{sample.id}-trace{number + 1}" if number else sample.id, "reasoning": reasoning}
            rows.append(_stamped(sample.model_copy(update=update), provenance))
        return rows

    # --- calls ------------------------------------------------------------------------------------------------

    async def _call(
        self, endpoint: Endpoint, item: Item, step: str, attempt: int, number: int, prompt: str, clip: Clip | None
    ) -> Reply:
        """The answer to one call: from the journal, or asked for and journalled."""
        role, config = endpoint.role, endpoint.config
        sampled = [config.model, config.temperature, config.max_tokens, config.extra]
        shown = None if clip is None else [item.media.model_dump(mode="json"), self.config.num_frames]
        identity = canonical_json([item.id, role, step, attempt, number, sampled, self.config.seed, shown, prompt])
        key = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
        record = self.journal.find(key)
        if record is not None:
            self.summary.replayed += 1
            return Reply(record["text"], record["finished"], record["tokens"][0], record["tokens"][1], record["usd"])
        content: Any = prompt
        if clip is not None:
            content = [*_frames(clip), {"type": "text", "text": prompt}]
        reply = await endpoint.ask([{"role": "user", "content": content}], int(key[:7], 16))
        self.journal.add(
            key,
            id=item.id,
            role=role,
            model=config.model,
            step=step,
            attempt=attempt,
            text=reply.text,
            finished=reply.finished,
            tokens=[reply.input_tokens, reply.output_tokens],
            usd=reply.usd,
        )
        return reply

    # --- output -----------------------------------------------------------------------------------------------

    def write(self, output: Path) -> None:
        """Write what is decided, in the order of the source; the files appear when they are whole."""
        self.summary.rows, self.summary.decided = 0, 0
        self.summary.dropped.clear()
        with _whole(output) as rows, _whole(output.with_suffix(".dropped.jsonl")) as dropped:
            for item in self._items():
                if isinstance(item, RowError):
                    kind, _, detail = item.reason.partition(": ")
                    known = kind in ("duplicate_id", "missing_media", "bad_segments")
                    reason, detail = (kind, detail) if known else ("unreadable_row", item.reason)
                    record: dict[str, Any] = {"id": None, "dropped": reason, "detail": detail}
                else:
                    digest = item.digest(self._settings)
                    found = self._unusable.get(digest) or self.journal.find(digest)
                    if found is None:
                        continue
                    record = found
                self.summary.decided += 1
                for line in record.get("rows", ()):
                    rows.write(line + "\n")
                    self.summary.rows += 1
                if "dropped" in record:
                    self.summary.dropped[record["dropped"]] += 1
                    entry = {
                        "line": item.line,
                        "id": record["id"],
                        "reason": record["dropped"],
                        "detail": record["detail"],
                    }
                    dropped.write(json.dumps(entry, ensure_ascii=True) + "\n")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Any]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _settings(config: CurationConfig, prompts: Prompts) -> Any:
    """The settings that have a say in what comes of an item: not where servers are, their patience or their price."""
    roles = {"teacher", "judge"} if config.method == "hindsight" else {"teacher"}
    shared = config.model_dump(
        mode="json", exclude={"teacher", "judge", "prompts", "budget_usd", "max_items", "videos"}
    )
    sampling = {"model", "temperature", "max_tokens", "extra"}
    asked = {role: getattr(config, role).model_dump(mode="json", include=sampling) for role in roles}
    return [shared, asked, prompts.hashes(STEPS[config.method]), __version__]


def _inside(segments: Sequence[Evidence], duration_s: float) -> tuple[Evidence, ...]:
    """Segments of a source, cut at the video's end where they reach a little beyond it."""
    kept = []
    for segment in segments:
        if segment.end_s > duration_s + _BEYOND_END_S:
            raise _DropError(
                "bad_segments", f"a segment ends at {segment.end_s:g} s, the video already at {duration_s:.2f} s"
            )
        end_s = math.floor(min(segment.end_s, duration_s) * 100 + 1e-6) / 100
        start_s = round(segment.start_s, 2)
        if start_s >= end_s:
            raise _DropError("bad_segments", f"a segment is empty ({segment.start_s:g} to {segment.end_s:g} s)")
        try:
            caption = clean(segment.caption, "caption")
        except UnusableError as error:
            raise _DropError("bad_segments", str(error)) from None
        kept.append(Evidence(start_s=start_s, end_s=end_s, caption=caption))
    return tuple(sorted(kept, key=lambda segment: (segment.start_s, segment.end_s)))


def _in_words(sample: Sample) -> str:
    """The true answer, with the text of its option."""
    if not sample.options:
        return sample.answer
    return f"{sample.answer}. {sample.options[string.ascii_uppercase.index(sample.answer)]}"


def _stamped(row: Sample, provenance: dict[str, Any]) -> Sample:
    return row.model_copy(update={"metadata": {**row.metadata, "curation": provenance}})


def _frames(clip: Clip) -> Iterator[dict[str, Any]]:
    """Frames as the parts of a message, each after its time."""
    for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
        if clip.kind == "video":
            yield {"type": "text", "text": f"[{time_s:.1f} s]"}
        yield {"type": "image_url", "image_url": {"url": data_uri(jpeg(frame, max_height=frame.shape[0], quality=85))}}
