"""``vthink serve`` and ``vthink ask``: a model behind OpenAI's chat route, and a question to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from ...components.common.config import TrackingConfig


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: vthink serve --port 8080")(serve)
    app.command(epilog="Example: vthink ask http://127.0.0.1:8080 clip.mp4 'Which way does it move?'")(ask)


def serve(
    model: Annotated[
        str, typer.Argument(help="A model folder, an s3://…/ prefix, or a version or alias in the registry.")
    ] = "champion",
    port: Annotated[int | None, typer.Option(help="TCP port; default: the configuration's.")] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Serve a model: OpenAI chat completions with video, and a page to try it, on this machine only by default."""
    from ...components.common.config import ConfigError
    from ...components.deployment.server import run_server
    from ..run import session

    config = load(preset, overrides)
    server = config.deployment.server
    if port is not None:
        server = type(server).load(server.model_dump() | {"port": port}, "--port")
    if Path(model).is_dir():
        run_server(model, server)
        return
    if "/" in model and not model.startswith("s3://"):
        raise ConfigError(f"{model}: no such model folder")
    with session(config, workspace, exclusive=False) as opened:
        uri = model if model.startswith("s3://") else _registered(opened.context.tracking, model)
        typer.echo(f"serving {uri}")
        run_server(uri, server, opened.context.storage, opened.workspace.work_dir / "served")


def _registered(tracking: TrackingConfig, name: str) -> str:
    """The S3 prefix of a version (``7``) or an alias (``champion``) in the registry."""
    from ...components.deployment.registry import Registry, RegistryError

    registry = Registry(tracking)
    versions = registry.versions()
    found = next((version for version in versions if name == str(version.version)), None) or registry.alias(name)
    if found is not None:
        return found.source
    known = ", ".join(str(version.version) for version in versions) or "none yet; train one with `vthink run`"
    raise RegistryError(f"no version or alias '{name}' of the model '{tracking.registered_model}'; versions: {known}")


def ask(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:8080.")],
    video: Annotated[Path, typer.Argument(help="A video or an image file.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="An answer to choose from, without letter. Repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
) -> None:
    """Ask a served model about a video, and show its answer with the segments it rests on."""
    import json

    from rich.console import Console
    from rich.markup import escape

    from ...components.deployment.client import ask as ask_server

    console = Console(highlight=False)
    stream = None if json_output else lambda piece: console.print(piece, end="", markup=False, style="dim")
    result = ask_server(url, video, question, option or (), stream)
    if json_output:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console.print("\n")
    for segment in result["segments"]:
        console.print(f"[cyan]{segment['start_s']:.1f}–{segment['end_s']:.1f} s[/] {escape(segment['caption'])}")
    console.print(f"[bold]{escape(result['answer'] or 'no answer')}[/]")
