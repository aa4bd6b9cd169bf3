"""The teacher or the judge: a model behind a server, asked by many at once, counted, and never beyond the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...common.chat_endpoint.endpoint import CallFailedError, ChatEndpoint, EndpointUnusableError
from ...common.chat_endpoint.media import Part
from ..config import TeacherConfig
from .account import Account

Role = Literal["teacher", "judge"]
IMAGE_TOKENS = 1000
"""What an image is taken to cost until the server has said what it did cost."""
MAX_FAILURES_IN_A_ROW = 20
"""After so many calls that failed for good, without one that worked, the server is given up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote."""

    text: str
    """Its words; empty where there are none."""
    finished: bool
    """Whether it came to its end, rather than being cut off at ``max_tokens``."""
    input_tokens: int
    output_tokens: int
    usd: float
    """What it cost, by the configured prices."""


class CurationModel:
    """A model in one role. `endpoint` is an asynchronous context manager that must be entered."""

    def __init__(self, role: Role, config: TeacherConfig, account: Account):
        """Check the settings.

        Raises:
            EndpointUnusableError: no URL, no model, or no key where one is named.
        """
        self.role = role
        self.config = config
        self._account = account
        self._failures_in_a_row = 0
        setting = f"curation.{role}"
        self.endpoint = ChatEndpoint(
            config, name=f"the {role}", setting=setting, attempt=account.attempt, pause=account.pause
        )
        if not config.model:
            raise EndpointUnusableError(f"{setting}.model is not set; give it with --set {setting}.model=…")

    async def ask(self, parts: Sequence[Part], seed: int) -> Answer:
        """One answered call; waits its turn, and repeats what failed.

        Raises:
            CallFailedError: the server refused this call, or failed at every attempt.
            EndpointUnusableError: the server cannot be used at all.
            StoppedError: no more calls are to be made.
        """
        config, account = self.config, self._account
        most_input_tokens = sum(
            len(part["text"].encode("utf-8", "replace")) // 2 if part["type"] == "text" else IMAGE_TOKENS
            for part in parts
        )
        content = parts[0]["text"] if len(parts) == 1 else list(parts)
        async with account.reserve(config.usd(most_input_tokens, config.most_output_tokens)):
            try:
                reply = await self.endpoint.complete(
                    [{"role": "user", "content": content}], {"seed": seed, **config.sampling()}
                )
            except EndpointUnusableError as error:
                account.stop(error)
                raise
            except CallFailedError as error:
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                    problem = f"{self._failures_in_a_row} calls in a row failed; the last: {error}"
                    account.stop(EndpointUnusableError(problem))
                raise
            self._failures_in_a_row = 0
            tokens_in = most_input_tokens // 2 if reply.input_tokens is None else reply.input_tokens
            tokens_out = len(reply.text) // 4 if reply.output_tokens is None else reply.output_tokens
            answer = Answer(reply.text, reply.finished, tokens_in, tokens_out, config.usd(tokens_in, tokens_out))
            account.calls[self.role] += 1
            account.input_tokens += tokens_in
            account.output_tokens += tokens_out
            account.usd += answer.usd
        return answer
