"""A CRD's schema as the Kubernetes API uses it: unknown fields, defaults, what is valid, and the CEL rules we meet."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?\d+)?")


def prune(schema: Mapping[str, Any], value: Any, path: str = "", root: bool = True) -> list[str]:
    """Drop the fields that a structural schema does not have, in place; their paths."""
    dropped: list[str] = []
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        properties, more = schema.get("properties"), schema.get("additionalProperties")
        if properties is None and more is None and schema.get("type") != "object":
            return []
        for key in list(value):
            below = f"{path}.{key}".lstrip(".")
            if root and key in ("apiVersion", "kind", "metadata"):
                continue
            if properties is not None and key in properties:
                dropped += prune(properties[key], value[key], below, False)
            elif isinstance(more, Mapping):
                dropped += prune(more, value[key], below, False)
            elif more is not True:
                del value[key]
                dropped.append(below)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, item in enumerate(value):
            dropped += prune(schema["items"], item, f"{path}[{index}]", False)
    return dropped


def set_defaults(schema: Mapping[str, Any], value: Any) -> None:
    """Give absent fields their defaults, in place."""
    if isinstance(value, dict):
        for key, below in schema.get("properties", {}).items():
            if key not in value and "default" in below:
                value[key] = copy.deepcopy(below["default"])
            if key in value:
                set_defaults(below, value[key])
        if isinstance(schema.get("additionalProperties"), Mapping):
            for item in value.values():
                set_defaults(schema["additionalProperties"], item)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for item in value:
            set_defaults(schema["items"], item)


def json_schema(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    out = {key: value for key, value in node.items() if key not in ("default", "format")}
    for key in ("properties", "patternProperties"):
        if key in node:
            out[key] = {name: json_schema(below) for name, below in node[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in node:
            out[key] = json_schema(node[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in node:
            out[key] = [json_schema(below) for below in node[key]]
    if node.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if node.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def _in_list(rule: str) -> Callable[[Any, Any], bool] | None:
    match = re.fullmatch(r"self in (\[.*\])", rule)
    if match is None:
        return None
    allowed = json.loads(match[1].replace("'", '"'))
    return lambda new, old: new in allowed


_CEL: dict[str, Callable[[Any, Any], bool]] = {
    "self == oldSelf": lambda new, old: new == old,
    "self >= 1": lambda new, old: new >= 1,
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')": lambda new, old: bool(
        re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", new["metadata"]["name"])
    ),
    "size(self.metadata.name) <= 63": lambda new, old: len(new["metadata"]["name"]) <= 63,
    "has(self.lastUpdatedTime)": lambda new, old: "lastUpdatedTime" in new,
}
"""The rules of CRDs that matter here, by their text."""


def rule_errors(schema: Mapping[str, Any], new: Any, old: Any, path: str = "") -> Iterator[str]:
    """The CEL rules that a value breaks; rules about ``oldSelf`` hold only where there was a value before."""
    for entry in schema.get("x-kubernetes-validations", []):
        rule = entry["rule"]
        check = _CEL.get(rule) or _in_list(rule)
        if check is None or ("oldSelf" in rule and old is None):
            continue
        if not check(new, old):
            yield f"{path or '<root>'}: Invalid value: {entry.get('message', rule)}"
    if isinstance(new, dict):
        before = old if isinstance(old, dict) else {}
        for key, below in schema.get("properties", {}).items():
            if key in new and isinstance(below, Mapping):
                yield from rule_errors(below, new[key], before.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(new, list) and isinstance(schema.get("items"), Mapping):
        keys = schema.get("x-kubernetes-list-map-keys")
        for index, item in enumerate(new):
            match = None
            if keys and isinstance(old, list):
                match = next((o for o in old if all(o.get(k) == item.get(k) for k in keys)), None)
            yield from rule_errors(schema["items"], item, match, f"{path}[{index}]")
        if keys:
            seen = [tuple(item.get(k) for k in keys) for item in new]
            yield from (f"{path}: Duplicate value: {key}" for key in {k for k in seen if seen.count(k) > 1})


def quantity_errors(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            at = f"{path}.{key}".lstrip(".")
            if key in ("limits", "requests") and isinstance(below, dict):
                for name, quantity in below.items():
                    if not isinstance(quantity, dict) and not _QUANTITY.fullmatch(str(quantity)):
                        yield f"{at}.{name}: quantities must match the regular expression (got {quantity!r})"
            else:
                yield from quantity_errors(below, at)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from quantity_errors(below, f"{path}[{index}]")
