"""``vthink config``: look at configurations and check them."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Overrides, Preset, load

app = typer.Typer(help="Look at configurations, and check them.", no_args_is_help=True)


@app.command(epilog="Example: vthink config show --preset video_r1_7b --set grpo.learning_rate=5e-6")
def show(preset: Preset = "laptop", overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults included, as YAML that can be edited and used."""
    from ..config import to_yaml

    print(to_yaml(load(preset, overrides)), end="")


@app.command(epilog="Example: vthink config validate my.yaml")
def validate(
    files: Annotated[list[str], typer.Argument(help="YAML files or presets.")], overrides: Overrides = None
) -> None:
    """Check configurations; a mistake is one line with file, key and the nearest known key."""
    for name in files:
        load(name, overrides)
        print(f"{name}: ok")


@app.command(epilog="Example: vthink config presets")
def presets() -> None:
    """List the presets that come with vthink."""
    from .. import config

    found = config.presets()
    width = max(map(len, found))
    for name, description in found.items():
        print(f"{name:<{width}}  {description}")
