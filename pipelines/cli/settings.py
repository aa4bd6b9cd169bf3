"""``--preset``, ``--set`` and ``--workspace``, which most commands take, and the configuration that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config import Config

Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        "--config",
        "-c",
        metavar="NAME|FILE",
        help="A preset (vthink config presets), or a YAML file; a file may say 'extends: laptop'.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. grpo.learning_rate=5e-6. Repeatable."),
]
Folder = Annotated[Path, typer.Option("--workspace", metavar="DIR", help="Where this machine's runs keep everything.")]
WORKSPACE = Path(".vthink")


def load(preset: str, overrides: list[str] | None) -> Config:
    """The configuration that the options name."""
    from .. import config

    return config.load(preset, overrides or ())
