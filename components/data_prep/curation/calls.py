"""The calls of a curation: answered by the journal where they were made before, checked, and asked for again where the
answer cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ...common.chat_endpoint.media import text_part
from ...common.storage.names import canonical_json
from ...common.video.clip import Clip
from ..config import CurationConfig
from .items import DropItemError, Item
from .journal import CallJournal, CallRecord
from .media import frame_parts
from .model import Answer, CurationModel
from .prompts import Prompts
from .replies import UnusableError

T = TypeVar("T")


@dataclass
class Calls:
    """What the methods of curation ask with."""

    config: CurationConfig
    prompts: Prompts
    journal: CallJournal
    teacher: CurationModel
    judge: CurationModel | None
    replayed: int = 0
    """Answers that came from the journal."""

    async def ask(
        self,
        model: CurationModel,
        item: Item,
        step: str,
        prompt: str,
        *,
        attempt: int = 0,
        repetition: int = 0,
        clip: Clip | None = None,
    ) -> Answer:
        """The answer to one call: from the journal, or asked for and journalled.

        Args:
            model: who is asked.
            item: what it is about.
            step: name of the prompt.
            prompt: the words.
            attempt: traces, or samples, of this step that came before.
            repetition: answers of this attempt that could not be used.
            clip: is shown before the words.

        Raises:
            CallFailedError, EndpointUnusableError, StoppedError: see `CurationModel.ask`.
        """
        config = model.config
        settings = [config.model, config.temperature, config.max_tokens, config.extra]
        shown = None if clip is None else [item.media.model_dump(mode="json"), self.config.num_frames]
        identity = [item.id, model.role, step, attempt, repetition, settings, self.config.seed, shown, prompt]
        key = hashlib.sha256(canonical_json(identity).encode("utf-8", "surrogatepass")).hexdigest()
        if (record := self.journal.call(key)) is not None:
            self.replayed += 1
            return Answer(record.text, record.finished, *record.tokens, record.usd)
        parts = [*(frame_parts(clip) if clip is not None else ()), text_part(prompt)]
        answer = await model.ask(parts, int(key[:7], 16))
        self.journal.add(
            CallRecord(
                key=key,
                id=item.id,
                role=model.role,
                model=config.model,
                step=step,
                attempt=attempt,
                text=answer.text,
                finished=answer.finished,
                tokens=(answer.input_tokens, answer.output_tokens),
                usd=answer.usd,
            )
        )
        return answer

    async def usable(
        self,
        item: Item,
        step: str,
        prompt: str,
        check: Callable[[str], T],
        *,
        attempt: int = 0,
        clip: Clip | None = None,
    ) -> tuple[T, int]:
        """The teacher's checked answer, and how many before it could not be used; each is asked for with what was wrong
        with the one before.

        Raises:
            DropItemError: none of them could be used.
        """
        words, problem = prompt, ""
        for repetition in range(self.config.max_malformed + 1):
            answer = await self.ask(self.teacher, item, step, words, attempt=attempt, repetition=repetition, clip=clip)
            try:
                if not answer.finished:
                    raise UnusableError("it was cut off before its end (max_tokens)")
                return check(answer.text), repetition
            except UnusableError as error:
                problem = str(error)
                words = f"{prompt}\n\nAn earlier reply could not be used: {problem}"
        raise DropItemError("malformed_reply", f"{step}, {self.config.max_malformed + 1} times; the last: {problem}")
