"""`Section`, of which every part of the configuration is one, and the error that a mistake in it gives.

Each stage and each subject owns its sections in a ``config.py`` of its own; ``pipelines/config.py`` assembles them.
"""

import json
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

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
    return mistakes(error, model)[0][1]


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[str | int, ...], str]]:
    """Every mistake of a pydantic error: the path of its key, and a line for a person."""
    groups: list[list[ErrorDetails]] = []  # of a union every branch complains
    for entry in error.errors():
        path = key_path(model, entry["loc"])
        for group in groups:
            others = [key_path(model, other["loc"]) for other in group]
            if path and any(path[: len(other)] == other or other[: len(path)] == path for other in others):
                group.append(entry)
                break
        else:
            groups.append([entry])
    unknown = {key_path(model, group[0]["loc"])[:-1] for group in groups if group[0]["type"] == "extra_forbidden"}
    lines = []
    for group in groups:
        # The branch that got furthest into the value is the one that was meant.
        first = max(group, key=lambda entry: len(entry["loc"]))
        path = key_path(model, first["loc"])
        if first["type"] == "missing" and path[:-1] in unknown:
            continue  # it is there, misspelt
        lines.append((path, _line(first, path, model)))
    return lines


def _line(error: ErrorDetails, path: tuple[str | int, ...], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in path)
    if error["type"] == "extra_forbidden":
        known, name = known_keys(model, path[:-1]), str(path[-1])
        short = [other for other in known if _initials(other) == name.lower()]
        return f"unknown key '{key}'; {did_you_mean(short[0] if short else name, known, 'known keys here')}"
    message = error["msg"].removeprefix("Value error, ")
    return f"'{key}': {message} (got {error.get('input')!r:.80})" if key else message


def _initials(name: str) -> str:
    """``lr`` for ``learning_rate``."""
    return "".join(word[0] for word in name.split("_") if word)


def key_path(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys of a pydantic error's location, without the names that it inserts for the branches of a union."""
    path: tuple[str | int, ...] = ()
    for index, part in enumerate(location):
        known = known_keys(model, path)
        plain = index + 1 == len(location) and part not in ("str", "int", "float", "bool")  # a key, not a branch
        tag = isinstance(part, str) and part not in known and ("[" in part or not plain)
        if not (known and tag):
            path = (*path, part)
    return path
