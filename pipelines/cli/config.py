"""``vthink config``: look at configurations and check them."""

from __future__ import annotations

from typing import Annotated

import typer

from .settings import Overrides, Preset, load


def show(preset: Preset = "laptop", overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults included, as YAML that can be edited and used."""
    from ..config import to_yaml

    print(to_yaml(load(preset, overrides)), end="")


def validate(
    files: Annotated[list[str], typer.Argument(help="YAML files or presets.")], overrides: Overrides = None
) -> None:
    """Check configurations; a mistake is one line with file, key and the nearest known key."""
    for name in files:
        load(name, overrides)
        print(f"{name}: ok")


def presets() -> None:
    """List the presets that come with vthink."""
    from .. import config

    found = config.presets()
    width = max(map(len, found))
    for name, description in found.items():
        print(f"{name:<{width}}  {description}")
