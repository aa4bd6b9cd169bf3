"""The structured answer as JSON, in the shape that a request's ``response_format`` asks for."""

import json
from typing import Any

from ..ask import StructuredAnswer

Selection = dict[str, Any]  # fields to give: each with the selection below it, or None

_VIEW: Selection = {
    "segments": [{"start_s": "number", "end_s": "number", "caption": "string", "thought": "string"}],
    "reasoning": "string",
    "answer": "string",
}
_DESCRIPTIVE = {"type", "title", "description", "anyOf", "default", "examples", "$ref"}
_OF_CONTAINERS = {
    "$schema",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "$defs",
    "definitions",
    "strict",
}


def select_fields(schema: dict[str, Any]) -> Selection:
    """Which fields a JSON schema asks for. ValueError: it asks for what a structured answer does not have."""
    selection = _select(schema, _VIEW, schema, "", 0)
    assert isinstance(selection, dict)
    return selection


def _select(schema: Any, view: Any, root: dict[str, Any], path: str, depth: int) -> Any:
    here = path or "the schema"
    if not isinstance(schema, dict) or depth > 16:
        raise ValueError(f"{here} is not a schema")
    reference = schema.get("$ref")
    if isinstance(reference, str):
        target: Any = root
        for name in reference.removeprefix("#/").split("/"):
            target = target.get(name) if isinstance(target, dict) else None
        return _select(target, view, root, path, depth + 1)
    branches = [b for b in schema.get("anyOf") or () if isinstance(b, dict) and b.get("type") != "null"]
    if len(branches) == 1:
        return _select(branches[0], view, root, path, depth + 1)
    strange = set(schema) - _DESCRIPTIVE - _OF_CONTAINERS
    if strange or branches:
        raise ValueError(
            f"{here}: '{min(strange or {'anyOf'})}' cannot be kept to; this server gives {json.dumps(_VIEW)}"
        )
    wanted = schema.get("type")
    types = set(wanted if isinstance(wanted, list) else [wanted] if wanted else []) - {"null"}
    expected = "object" if isinstance(view, dict) else "array" if isinstance(view, list) else view
    if types and types != {expected}:
        raise ValueError(f"{here} is {expected} here, not {', '.join(map(str, types))}")
    if isinstance(view, list):
        return [_select(schema.get("items", {}), view[0], root, path, depth + 1)]
    if not isinstance(view, dict):
        return None
    properties = schema.get("properties")
    if properties is None:
        properties = {name: {} for name in view}
    unknown = sorted(set(properties) - set(view)) if isinstance(properties, dict) else ["properties"]
    if unknown:
        raise ValueError(f"'{path + unknown[0]}' is not a field of the answer; there are {', '.join(view)}")
    return {name: _select(properties[name], view[name], root, f"{path}{name}.", depth + 1) for name in properties}


def as_json(answer: StructuredAnswer, selection: Selection) -> str:
    """The selected fields; without an answer its text is empty."""
    whole = answer.model_dump(mode="json")
    return json.dumps(_pick(whole | {"answer": answer.answer or ""}, selection), ensure_ascii=False)


def _pick(value: Any, selection: Any) -> Any:
    if isinstance(selection, dict):
        return {name: _pick(value[name], below) for name, below in selection.items()}
    if isinstance(selection, list):
        return [_pick(each, selection[0]) for each in value]
    return "" if value is None else value
