"""``vthink train``: one training stage by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="URI|PATH",
        help="A prepared set (its manifest or prefix), or rows to prepare first; default: the rows of data.source.",
    ),
]


def sft(
    data: Data = None, preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE
) -> None:
    """Fine-tune the base model on reasoning traces. Prints the manifest's URI."""
    from ...components.common.training.stage import train_stage
    from ...components.sft.config import SFTConfig
    from ..run.session import find_data, session

    config = load(preset, overrides)
    with session(config, workspace) as opened:
        prepared = find_data(opened, data)
        sections = opened.context.to_json(), config.sft.to_json(), config.model.to_json()
        print(train_stage("sft", SFTConfig, "vthink.components.sft", *sections, prepared))


def grpo(
    data: Data = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="URI|PATH", help="What SFT left (its manifest or prefix); default: the base model."),
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Improve a model by (T-)GRPO. Prints the manifest's URI."""
    from ...components.common.training.stage import train_stage
    from ...components.grpo.config import GRPOConfig
    from ..run.session import find_data, find_manifest, session

    config = load(preset, overrides)
    with session(config, workspace) as opened:
        start = find_manifest(opened, policy) if policy else ""
        prepared = find_data(opened, data)
        sections = opened.context.to_json(), config.grpo.to_json(), config.model.to_json()
        print(train_stage("grpo", GRPOConfig, "vthink.components.grpo", *sections, prepared, start))
