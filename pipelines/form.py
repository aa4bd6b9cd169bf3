"""The form of Kubeflow Pipelines' page for a new run: a field for what one usually changes, laid on the settings that
the pipeline was compiled with."""

import json
from collections.abc import Mapping
from typing import Any

from ..components.common.context import RunContext
from .config import Config, load

SECTIONS = ("model", "video", "data", "sft", "grpo", "evaluation", "deployment")
"""The sections that tasks get, each a parameter of the pipeline, as JSON."""
FIELDS: dict[str, tuple[str, ...]] = {
    "rows": ("data", "source"),
    "base_model": ("model", "name"),
    "sft_steps": ("sft", "max_steps"),
    "grpo_steps": ("grpo", "max_steps"),
    "train_sft": ("sft", "enabled"),
    "train_grpo": ("grpo", "enabled"),
}
"""The setting behind each field. A field that is empty, 0, or as it was compiled changes nothing."""
Values = Mapping[str, str | int | bool]


def shown(config: Config) -> dict[str, str | int | bool]:
    """What the fields show for a configuration."""
    values = {name: getattr(getattr(config, section), key) for name, (section, key) in FIELDS.items()}
    return {"preset": "", "training_pool": config.launch.pool.get("grpo", ""), **values}


def fill_in(run: str, config: str, sections: Mapping[str, str], fields: Values) -> dict[str, str]:
    """What a person filled in, as the pipeline's tasks get it: ``run``, ``config`` and `SECTIONS`, as JSON.

    Args:
        run: `RunContext` as JSON.
        config: the configuration that the pipeline was compiled with, as JSON; empty: none, the sections are all.
        sections: `SECTIONS` as JSON. One that differs from ``config`` was changed by hand, which counts.
        fields: those of `shown`.

    Raises:
        ConfigError: the result is no configuration; a line for every mistake."""
    context = RunContext.load(run, "run")
    given = {name: json.loads(text) for name, text in sections.items() if text}
    compiled: dict[str, Any] = json.loads(config) if config else {"name": "form", **given}
    values = compiled | {name: given[name] for name in given if not config}
    launch = context.launch
    if preset := str(fields["preset"]):
        base = load(preset)
        kept = {name: values[name] for name in ("name", "deployment") if name in values}
        values = base.model_dump(mode="json") | kept
        here = {name: getattr(launch, name) for name in ("backend", "pool", "cluster")}
        launch = base.launch.model_copy(update=here)
    values |= {name: section for name, section in given.items() if section != compiled.get(name)}
    for name, (section, key) in FIELDS.items():
        if fields[name] not in ("", 0) or isinstance(fields[name], bool):
            before = compiled.get(section, {}).get(key)
            if fields[name] != before and not (preset and before is None):
                values[section] = {**values.get(section, {}), key: fields[name]}
    if pool := str(fields["training_pool"]):
        launch = launch.model_copy(update={"pool": {**launch.pool, "sft": pool, "grpo": pool}})
    context = context.model_copy(update={"launch": type(launch).load(launch.model_dump(), "training_pool")})
    where = {name: getattr(context, name).model_dump(mode="json") for name in ("storage", "tracking", "launch")}
    filled = Config.load(values | where, "the form")
    texts = {name: getattr(filled, name).to_json() for name in SECTIONS}
    return {"run": context.to_json(), "config": filled.to_json(), **texts}
