"""A registered model in service: ``vthink serve``, ``ask``, ``deploy``, ``promote``, ``rollback``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from ...components.common.tracking.config import TrackingConfig
    from ...components.deployment.registry import ModelVersion
    from ..run.session import Session


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
    from ...components.deployment.server.serve import run_server
    from ..run.session import session

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
    from ...components.deployment.registry import Registry

    return Registry(tracking).find(name).source


Version = Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="In the registry, e.g. 7 or candidate.")]


def deploy(
    version: Version = "candidate",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the InferenceService; change nothing.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", metavar="yaml|json", help="Format of --dry-run.")] = "yaml",
    hold: Annotated[
        bool, typer.Option("--hold", help="On a cluster: stop with the candidate beside the model in service.")
    ] = False,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Test a registered version with held-out items, and make it the one in service if it agrees with its evaluation.

    With deployment.target=kserve it starts beside the model in service, is compared with it, gets a share of the
    traffic and then all of it. A version that fails is taken away; what was in service stays.
    """
    from ...components.deployment.registry import Registry
    from ..run.session import session

    if output not in ("yaml", "json"):
        raise typer.BadParameter("yaml or json", param_hint="--output")
    with session(load(preset, overrides), workspace, exclusive=False) as opened:
        found = Registry(opened.context.tracking).find(version)
        if dry_run:
            typer.echo(_manifest(opened, found, output), nl=False)
            return
        _deploy(opened, found, hold)


def service_lines(opened: Session) -> list[str]:
    """What is in service and what waits beside it, a line each: the registry's champion, then the cluster's view."""
    from ...components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster
    from ...components.deployment.registry import champion
    from ...components.deployment.rollout import standing

    now = champion(opened.context.tracking)
    lines = [f"champion: {f'{now.name}/{now.version}, {now.source}' if now is not None else 'none yet'}"]
    if opened.config.deployment.target == "kserve":
        name = opened.config.deployment.kserve.name
        found = Cluster.connect(opened.config.launch.cluster.namespace).get(INFERENCE_SERVICE, name)
        lines += standing.standing(found) if found is not None else [f"no InferenceService {name} on the cluster"]
    return lines


def _manifest(opened: Session, version: ModelVersion, output: str) -> str:
    """The InferenceService as text."""
    import json

    import yaml

    from ...components.deployment.rollout import inference_service, trained_model

    section, launch = opened.config.deployment, opened.config.launch
    model = trained_model.TrainedModel.read(opened.storage, version.source)
    body = inference_service.inference_service(version, model, section, launch)
    if output == "json":
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110)


def _deploy(opened: Session, version: ModelVersion, hold: bool = False) -> None:
    import logging

    from ...components.deployment.deploy import deploy_registered

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    section = opened.config.deployment
    typer.echo(f"version {version.version} of '{version.name}': {version.source}")
    smoke = deploy_registered(opened.context, section, version, opened.storage, hold)
    typer.echo(smoke["why"])
    if smoke.get("promoted", True):
        typer.echo(f"version {version.version} is in service (champion)")
    else:
        typer.echo(f"version {version.version} waits beside the model in service: vthink promote, or vthink rollback")


def promote(preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE) -> None:
    """Give the candidate that `vthink deploy --hold` left beside the model in service all of the traffic.

    It is asked the held-out items once more first.
    """
    from ...components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster
    from ...components.deployment.registry import Registry
    from ...components.deployment.rollout.trained_model import RolloutError
    from ..run.session import session

    config = load(preset, overrides)
    if config.deployment.target == "local":
        raise RolloutError("deployment.target=local has no candidates beside the model in service; use `vthink deploy`")
    name = config.deployment.kserve.name
    found = Cluster.connect(config.launch.cluster.namespace).get(INFERENCE_SERVICE, name)
    waiting = [entry["predictor"]["name"] for entry in (found or {}).get("spec", {}).get("canary") or []]
    if not waiting:
        raise RolloutError(f"the InferenceService {name} has no candidate; begin with `vthink deploy --hold`")
    with session(config, workspace, exclusive=False) as opened:
        _deploy(opened, Registry(opened.context.tracking).find(waiting[0].removeprefix("v")))


def rollback(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|ALIAS", help="Default: what was in service before the champion.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Take a waiting candidate away; where none waits, bring the version before the champion back into service."""
    from ...components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster
    from ...components.deployment.registry import CHAMPION, REPLACED, Registry
    from ...components.deployment.rollout.rollout import withdraw
    from ...components.deployment.rollout.trained_model import RolloutError
    from ..run.session import session

    config = load(preset, overrides)
    if config.deployment.target == "kserve" and version is None:
        cluster = Cluster.connect(config.launch.cluster.namespace)
        name = config.deployment.kserve.name
        found = cluster.get(INFERENCE_SERVICE, name)
        if found is not None and withdraw(cluster, name):
            typer.echo(
                f"took the candidate away; in service stays {found['spec']['predictor'].get('name', 'what was')}"
            )
            return
    with session(config, workspace, exclusive=False) as opened:
        registry = Registry(opened.context.tracking)
        if version is None:
            champion = registry.find(CHAMPION)
            version = champion.tags.get(REPLACED)
            if version is None:
                raise RolloutError(f"nothing was in service before version {champion.version}; name a version")
        _deploy(opened, registry.find(version))


def ask(
    url: Annotated[str, typer.Argument(help="The server, e.g. http://127.0.0.1:8080.")],
    video: Annotated[Path, typer.Argument(help="A video or an image file.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="An answer to choose from, without letter. Repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON.")] = False,
    model: Annotated[str | None, typer.Option(help="Name of the served model, where the server asks for one.")] = None,
) -> None:
    """Ask a served model about a video, and show its answer with the segments it rests on.

    A server that asks for a key gets the one in VTHINK_API_KEY.
    """
    import json
    import os

    from rich.console import Console
    from rich.markup import escape

    from ...components.deployment.client import API_KEY
    from ...components.deployment.client import ask as ask_server

    console = Console(highlight=False)
    stream = None if json_output else lambda piece: console.print(piece, end="", markup=False, style="dim")
    result = ask_server(url, video, question, option or (), stream, model=model, api_key=os.environ.get(API_KEY))
    if json_output:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console.print("\n")
    for segment in result["segments"]:
        console.print(f"[cyan]{segment['start_s']:.1f}–{segment['end_s']:.1f} s[/] {escape(segment['caption'])}")
    console.print(f"[bold]{escape(result['answer'] or 'no answer')}[/]")
