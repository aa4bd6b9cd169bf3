"""A table of things that a configuration chooses by name, and that others may add to without changing this package."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from .errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name; ``"my_module:THING"`` is the one that somebody's own module holds."""

    def __init__(self, kind: str, entry_type: Any, entries: Mapping[str, T] | None = None):
        """``kind`` names an entry in messages; those from outside must be of ``entry_type``, a class or `Callable`."""
        self.kind = kind
        self._type = entry_type
        self._entries = dict(entries or {})

    def register(self, name: str, entry: T) -> T:
        """Add an entry under a name that is free; returns it."""
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} '{name}' already")
        self._entries[name] = entry
        return entry

    def get(self, name: str, outside: bool = True) -> T:
        """The entry of this name, or (``outside``) the one at ``my_module:THING``; a `UserError` for none."""
        if name in self._entries:
            return self._entries[name]
        if outside and ":" in name:
            return self._load(name)
        raise UserError(f"unknown {self.kind} '{name}'; {did_you_mean(name, self._entries)}")

    def check(self, name: str) -> str:
        """The name itself, for a pydantic validator: a `ValueError` where `get` knows none; imports nothing."""
        if ":" not in name:
            try:
                self.get(name)
            except UserError as error:
                raise ValueError(str(error)) from error
        return name

    def _load(self, name: str) -> T:
        module_name, _, path = name.partition(":")
        try:
            value: Any = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:
            problem = f"cannot import {module_name!r} ({error}); is it installed, or its folder on PYTHONPATH?"
            raise UserError(f"{self.kind} '{name}': {problem}") from error
        for part in path.split("."):
            if not hasattr(value, part):
                raise UserError(f"{self.kind} '{name}': {module_name} has no {path!r}")
            value = getattr(value, part)
        if not isinstance(value, self._type):
            expected = getattr(self._type, "__name__", self._type)
            raise UserError(f"{self.kind} '{name}' is a {type(value).__name__}, not a {expected}")
        return cast(T, value)

    def items(self) -> Iterator[tuple[str, T]]:
        """The registered names and entries, in the order in which they were added."""
        return iter(self._entries.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
