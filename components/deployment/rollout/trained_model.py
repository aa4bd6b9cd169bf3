"""What serving must know of a model folder: its prompt, how it sees videos, its family and its chat template."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.errors import UserError
from ...common.model.folder import CARD, ModelCard
from ...common.model.prompts import Prompt, get_template
from ...common.storage.names import join
from ...common.storage.s3 import Storage
from ...common.video.config import VideoConfig


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What serving must know of a model folder."""

    prompt: Prompt
    """Its prompt template."""
    video: VideoConfig
    family: str
    """``model_type`` of its ``config.json``."""
    chat_template: str
    """The chat template of its tokenizer."""

    @classmethod
    def read(cls, storage: Storage, source: str) -> TrainedModel:
        """Read it from a model folder in the store.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            card = ModelCard.load(storage.read_json(join(source, CARD)), join(source, CARD))
            config = storage.read_json(join(source, "config.json"))
            template = storage.read_bytes(join(source, "chat_template.jinja")).decode()
            get_template(card.prompt)
            return cls(card.prompt, card.video, str(config["model_type"]), template)
        except UserError as error:
            raise UserError(f"{source} cannot be served: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} cannot be served: vthink.json or config.json is damaged ({error})") from error
