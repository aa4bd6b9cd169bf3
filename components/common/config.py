"""`Section`, of which every part of the configuration is one, and the error that a mistake in it gives.

Each stage and each subject owns its sections in a ``config.py`` of its own; ``pipelines/config.py`` assembles them.
"""

import json
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import UserError, did_you_mean

Stage = Literal["prepare", "sft", "grpo", "evaluate", "gate", "register", "deploy"]

STAGES: tuple[Stage, ...] = typing.get_args(Stage)  # the stages in the order of the pipeline


class ConfigError(UserError):
    """A mistake in a configuration, in one line that names the source, the key and what to do."""


class Section(BaseModel):
    """One part of the configuration: immutable, typed, and closed (an unknown key is an error)."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def load(cls, data: str | Mapping[str, Any], source: str = "configuration") -> Self:
        """Read a section from JSON text or a mapping; a `ConfigError` names ``source``, the key and the nearest known
        one."""
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{source}: not JSON (line {error.lineno}: {error.msg})") from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source}: expected a mapping of keys to values, got {type(data).__name__}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error, cls)}") from error

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so that equal sections have equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that are allowed at ``path`` below ``model`` (empty when the path leaves the typed part)."""
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):  # of a list of sections
            continue
        if current is None or part not in current.model_fields:
            return []
        annotation = current.model_fields[part].annotation
        candidates = [annotation, *typing.get_args(annotation)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return [] if current is None else list(current.model_fields)


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake of a pydantic error as one line for a person."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden" and e["loc"][:-1] == errors[0]["loc"][:-1]]
    if errors[0]["type"] == "missing" and unknown:
        errors = unknown  # the key that is missing is there, misspelt
    # Of a union every branch complains; the one that got furthest into the value is the one that was meant.
    beside = errors[0]["loc"][:-1]
    first = max((e for e in errors if e["loc"][: len(beside)] == beside), key=lambda e: len(e["loc"]))
    path = key_path(model, first["loc"])
    key = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        known = known_keys(model, path[:-1])
        return f"unknown key '{key}'; {did_you_mean(str(path[-1]), known, 'known keys here')}"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{key}': {message} (got {first.get('input')!r:.80})" if key else message


def key_path(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys of a pydantic error's location, without the names that it inserts for the branches of a union."""
    path: tuple[str | int, ...] = ()
    for index, part in enumerate(location):
        known = known_keys(model, path)
        tag = isinstance(part, str) and part not in known and ("[" in part or index + 1 < len(location))
        if not (known and tag):
            path = (*path, part)
    return path
