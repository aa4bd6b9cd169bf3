"""The model in service: a thread that answers all requests in one running batch, with the code that evaluation runs."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from prometheus_client import Counter, Gauge

from ...common.errors import UserError
from ...common.video.clip import Clip
from .clips import ClipKey
from .completion import Choice, GeneratedAnswer, Piece, TokenText
from .exchange import ApiError
from .request import ChatQuestion

if TYPE_CHECKING:
    from ...common.model.batch import Generation, Sampled
    from ...common.model.chat import ChatEncoder
    from ...common.model.load import LoadedModel

log = logging.getLogger(__name__)

_BATCH = Gauge("vthink_batch_rows", "Answers that are being generated at once")
_STEPS = Counter("vthink_batch_steps_total", "Steps of the running batch")
_TOKENS = Counter("vthink_generated_tokens_total", "Tokens generated")
_PROMPT = Counter(
    "vthink_prompt_tokens_total", "Tokens of prompts, by whether an earlier request had them read", ["read"]
)
_PREFIX_BYTES = Gauge("vthink_prefix_cache_bytes", "Memory of the prompts that were kept")

Deliver = Callable[[Piece | GeneratedAnswer | Exception], None]
"""Takes what an answer grows by, and at its end the whole, or why there is none. Called in the engine's thread."""


@dataclass(eq=False, slots=True)
class Job:
    """A question on its way to its answer."""

    question: ChatQuestion
    generation: Generation
    deliver: Deliver
    notes: tuple[str, ...]
    writers: list[AnswerText] = field(default_factory=list)
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop at the next step: nobody waits any more."""
        self.cancelled = True


class ServedModel:
    """The model in service."""

    def __init__(
        self, loaded: LoadedModel, max_batch: int = 32, cache_bytes: int = 2**30, cache_s: float = 600.0
    ) -> None:
        """Starts the thread; `close` ends it.

        Args:
            max_batch: answers generated at once.
            cache_bytes: memory for prompts that were read, so that the next question on a video costs its own tokens.
            cache_s: how long an unused one is kept."""
        from ...common.model.batch import ContinuousBatch
        from ...common.model.prefixes import PrefixCache

        self.loaded, self.video, self.fingerprint = loaded, loaded.video, loaded.card.lineage.fingerprint
        self.max_model_len = int(loaded.model.config.get_text_config().max_position_embeddings)
        loaded.encoder.remember_texts(0)
        self._prefixes = PrefixCache(cache_bytes, cache_s)
        self._batch = ContinuousBatch(loaded.model, loaded.encoder, self._prefixes, max_batch)
        self._waiting: deque[Job] = deque()
        self._jobs: dict[Generation, Job] = {}
        self._wake, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it was answering fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(10)

    def submit(self, question: ChatQuestion, clip: Clip | None, clip_key: ClipKey | None, deliver: Deliver) -> Job:
        """Answer a question, in the engine's thread. ApiError 400: the prompt does not fit the model's context."""
        from ...common.model.batch import Generation
        from ...common.model.generation import Sampling

        prompt, notes = self.loaded.encoder.encode_chat(question.turns, clip), question.notes
        room = self.max_model_len - len(prompt)
        if room < 1:
            message = f"{len(prompt)} prompt tokens are more than the model's {self.max_model_len}; ask about less"
            raise ApiError(400, message, "messages", "context_length_exceeded")
        if room < question.max_new_tokens:
            notes = (*notes, f"the answer has room for {room} tokens")
        if (
            question.turns[0].role == "system"
            and question.turns[0].text != (self.loaded.encoder.template.system or "").strip()
        ):
            notes = (*notes, "the model was trained with another system message")
        sampling = Sampling(
            max_new_tokens=min(room, question.max_new_tokens), temperature=question.temperature, top_p=question.top_p,
            seed=secrets.randbits(31) if question.seed is None else question.seed,
        )  # fmt: skip
        generation = Generation(
            prompt=prompt, clip=clip, clip_key=clip_key, sampling=sampling, n=question.n,
            top_logprobs=question.top_logprobs,
        )  # fmt: skip
        job = Job(question, generation, deliver, notes)
        job.writers = [AnswerText(self.loaded.encoder, question.stop) for _ in range(question.n)]
        with self._wake:
            if self._closed:
                raise ApiError(503, "the server is stopping")
            self._waiting.append(job)
            self._wake.notify()
        return job

    def _run(self) -> None:
        from ...common.model.generation import inference

        with inference(self.loaded.model):
            while True:
                with self._wake:
                    while not (self._waiting or self._batch.rows or self._closed):
                        self._wake.wait(60)
                        self._prefixes.expire()
                    if self._closed:
                        break
                try:
                    self._round()
                except Exception as error:
                    log.exception("the running batch failed")
                    self._fail_all(error)
        self._fail_all(ApiError(503, "the server is stopping"))

    def _round(self) -> None:
        """Let waiting prompts join, and generate a token for every answer."""
        with self._wake:
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
            waiting = list(self._waiting)
        for job in [job for job in self._jobs.values() if job.cancelled]:
            self._end(job)
        self._admit(waiting)
        _BATCH.set(len(self._batch.rows))
        _PREFIX_BYTES.set(self._prefixes.num_bytes)
        if not self._batch.rows:
            return
        sampled = self._batch.sample()
        _STEPS.inc()
        _TOKENS.inc(len(sampled))
        for token in sampled:
            self._take(token)
        self._batch.advance()

    def _admit(self, waiting: list[Job]) -> None:
        """Let those join for which there is room; one that cannot be read does not keep the others out."""
        if not waiting:
            return
        try:
            joined = set(self._batch.admit([job.generation for job in waiting]))
        except Exception as error:
            if len(waiting) > 1:
                for job in waiting:
                    self._admit([job])
                return
            log.exception("a prompt cannot be read")
            joined = set()
            with self._wake:
                self._waiting.remove(waiting[0])
            waiting[0].deliver(error)
        for job in waiting:
            if job.generation in joined:
                self._jobs[job.generation] = job
                with self._wake:
                    self._waiting.remove(job)
                _PROMPT.labels("before").inc(job.generation.cached_tokens)
                _PROMPT.labels("now").inc(len(job.generation.prompt) - job.generation.cached_tokens)

    def _take(self, token: Sampled) -> None:
        job = self._jobs.get(token.generation)
        if job is None:
            return
        if token.error is not None:
            self._end(job)
            job.deliver(UserError(token.error))
            return
        writer = job.writers[token.index]
        text, logprobs = writer.add(token)
        if text or logprobs:
            job.deliver(Piece(text, token.index, logprobs))
        if writer.finish_reason is not None and not token.finished:
            self._batch.drop(token.generation, token.index)
        if all(writer.finish_reason is not None for writer in job.writers):
            del self._jobs[job.generation]
            choices = tuple(
                Choice(
                    text=w.text,
                    token_ids=tuple(w.token_ids),
                    finish_reason=w.finish_reason or "stop",
                    logprobs=tuple(w.logprobs),
                )
                for w in job.writers
            )
            ids = tuple(job.generation.prompt.input_ids.tolist())
            job.deliver(
                GeneratedAnswer(choices=choices, prompt_token_ids=ids, cached_tokens=job.generation.cached_tokens)
            )

    def _end(self, job: Job) -> None:
        self._batch.drop(job.generation)
        self._jobs.pop(job.generation, None)

    def _fail_all(self, error: Exception) -> None:
        with self._wake:
            jobs = [*self._jobs.values(), *(self._waiting if self._closed else ())]
            if self._closed:
                self._waiting.clear()
        self._jobs.clear()
        self._batch.clear()
        for job in jobs:
            job.deliver(error)


class AnswerText:
    """The text of a growing answer, in pieces that later tokens do not change, up to a stop text."""

    def __init__(self, encoder: ChatEncoder, stop: tuple[str, ...] = ()) -> None:
        self._encoder, self._stop = encoder, stop
        self.token_ids: list[int] = []
        self.logprobs: list[TokenText] = []
        self.text = ""
        self.finish_reason: Literal["stop", "length"] | None = None
        self._read = self._settled = 0  # tokens whose text is in `_whole`; tokens before which decoding starts
        self._whole, self._sent, self._told = "", 0, 0

    def add(self, token: Sampled) -> tuple[str, tuple[TokenText, ...]]:
        """Take a token; returns the text that is now certain (often none) and the log-probabilities of its tokens."""
        self.token_ids.append(token.token_id)
        if token.logprob is not None:
            top = tuple(self._token(token_id, logprob) for token_id, logprob in token.top)
            self.logprobs.append(replace(self._token(token.token_id, token.logprob), top=top))
        ends = token.finished and token.token_id == self._encoder.eos_token_id
        decode = self._encoder.decode
        before = decode(self.token_ids[self._settled : self._read])
        now = decode(self.token_ids[self._settled :])
        if token.finished or (not now.endswith("\ufffd") and len(now) > len(before)):
            self._whole += now[len(before) :]
            self._settled, self._read = self._read, len(self.token_ids)
        found = [at for text in self._stop if (at := self._whole.find(text, max(0, self._sent - len(text)))) >= 0]
        if found:
            self._whole = self._whole[: min(found)]
        if found or token.finished:
            self.text, self.finish_reason = self._whole, "stop" if found or ends else "length"
        certain = len(self._whole) if self.finish_reason else len(self._whole) - self._held_back()
        piece, self._sent = self._whole[self._sent : certain], max(self._sent, certain)
        if not piece and not self.finish_reason:
            return "", ()
        new, self._told = tuple(self.logprobs[self._told :]), len(self.logprobs)
        return piece, new

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        sizes = (n for text in self._stop for n in range(len(text) - 1, 0, -1) if self._whole.endswith(text[:n]))
        return max(sizes, default=0)

    def _token(self, token_id: int, logprob: float) -> TokenText:
        text = str(self._encoder.tokenizer.decode([token_id]))
        return TokenText(text, text.encode(), logprob)
