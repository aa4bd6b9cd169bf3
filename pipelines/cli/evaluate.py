"""``vthink evaluate``: models side by side on held-out questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load
from .train import Data


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: vthink evaluate --sft s3://vthink/sft/0123456789abcdef/")(evaluate)


def evaluate(
    data: Data = None,
    sft: Annotated[str | None, typer.Option(metavar="URI|PATH", help="What SFT left.")] = None,
    grpo: Annotated[str | None, typer.Option(metavar="URI|PATH", help="What GRPO left.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the HTML report to this file.")] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Evaluate the base model, and what SFT and GRPO made of it, on the held-out split."""
    from rich.console import Console

    from ...components.common.storage import Manifest
    from ...components.evaluation import evaluate as stage
    from ..run import find_data, find_manifest, session
    from .run import accuracy_table

    config = load(preset, overrides)
    with session(config, workspace) as opened:
        of_sft, of_grpo = (find_manifest(opened, given) if given else "" for given in (sft, grpo))
        told = (opened.context.to_json(), config.evaluation.to_json(), config.model.to_json())
        uri = stage.run(*told, find_data(opened, data), of_sft, of_grpo, str(report) if report else None)
        result = opened.storage.read_json(Manifest.read(opened.storage, uri).files["result"])
    Console(highlight=False).print(accuracy_table(result))
    print(uri)
