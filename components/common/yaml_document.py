"""YAML that people write, read as they mean it: YAML 1.2, where ``5e-6`` is a number and ``on`` a word, with lines."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node

from .config import ConfigError


class _Constructor(SafeConstructor):
    """Plain values. YAML 1.2's core schema knows no dates, so ``2026-12-01`` is a word."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


@dataclass(frozen=True)
class YamlDocument:
    """Settings, nested, and where each stands."""

    source: str  # what a message calls it: a file's name, for example
    values: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]  # line (from 1) of each key, by its path

    def place(self, path: Sequence[str | int]) -> str | None:
        """``source:line`` of ``path`` (or of its longest known parent); None where the document does not set it."""
        values: Any = self.values
        known: tuple[str, ...] = ()
        for part in path:
            if not isinstance(values, Mapping) or part not in values:
                break
            known, values = (*known, str(part)), values[part]
        if not known or (len(known) < len(path) and isinstance(values, Mapping)):
            return None
        line = self.lines.get(known)
        return f"{self.source}:{line}" if line else self.source


def read_yaml(text: str, source: str) -> YamlDocument:
    """Read a document of ``key: value`` lines (or none); mistakes are a `ConfigError` with source and line."""
    try:
        lines = dict(_key_lines(_yaml().compose(text), source))
        values = parse_yaml(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        problem = error.problem if isinstance(error, MarkedYAMLError) else " ".join(str(error).split())
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not YAML: {problem}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected 'key: value' lines, got {type(values).__name__}")
    return YamlDocument(source, values, lines)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in plain types; a `YAMLError` where it is none."""
    return _yaml().load(text)


def write_yaml(values: Mapping[str, Any]) -> str:
    """YAML in the mapping's order that `read_yaml` reads back to equal values."""
    yaml, text = _yaml(), io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel annotates its default, None
    yaml.width = 120
    return yaml


def _key_lines(node: Node | None, source: str, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Path and line of every key below ``node``."""
    if not isinstance(node, MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        below, line = (*path, str(key.value)), key.start_mark.line + 1
        if below[-1] in first:
            raise ConfigError(f"{source}:{line}: '{'.'.join(below)}' is given twice (first in line {first[below[-1]]})")
        first[below[-1]] = line
        yield below, line
        yield from _key_lines(value, source, below)
