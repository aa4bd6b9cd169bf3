"""A table of things that a configuration chooses by name, and that others may add to without changing this package."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from .errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name.

    Besides the registered names, ``"my_module:THING"`` is the entry that somebody's own module holds.
    """

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

    def get(self, name: str) -> T:
        """The entry of this name, or the one at ``my_module:THING``.

        Raises:
            UserError: there is none; names the nearest, or says what is wrong with the module.
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._load(name)
        near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self._entries)}"
        raise UserError(f"unknown {self.kind} '{name}'; {hint}")

    def _load(self, name: str) -> T:
        module_name, _, path = name.partition(":")
        try:
            value: Any = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:
            hint = "is it installed, or its folder on PYTHONPATH?"
            raise UserError(f"{self.kind} '{name}': cannot import {module_name!r} ({error}); {hint}") from error
        for part in path.split("."):
            if not hasattr(value, part):
                raise UserError(f"{self.kind} '{name}': {module_name} has no {path!r}")
            value = getattr(value, part)
        if not isinstance(value, self._type):
            expected = getattr(self._type, "__name__", self._type)
            raise UserError(f"{self.kind} '{name}' is a {type(value).__name__}, not a {expected}")
        return cast(T, value)

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order in which they were added."""
        return tuple(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """The registered names and entries, in the order in which they were added."""
        return iter(self._entries.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
