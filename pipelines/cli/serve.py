"""A registered model in service: ``vthink serve``, ``ask``, ``deploy``, ``promote``, ``rollback``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from ...components.common.launch.kubernetes.client import Cluster, Object
    from ...components.deployment.registry import RegisteredVersion
    from ..config import Config
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
    from ...components.common.errors import UserError
    from ...components.common.launch.process import limit_threads
    from ...components.deployment.registry import ModelRegistry
    from ...components.deployment.server.serve import run_server
    from ..run.session import session

    config = load(preset, overrides)
    limit_threads(config.launch)
    server = config.deployment.server
    if port is not None:
        server = type(server).load(server.model_dump() | {"port": port}, "--port")
    if Path(model).is_dir():
        run_server(model, server)
        return
    if "/" in model and not model.startswith("s3://"):
        raise UserError(f"{model}: no such model folder")
    with session(config, workspace, exclusive=False) as opened:
        uri = model if model.startswith("s3://") else ModelRegistry(opened.context.tracking).find(model).source
        typer.echo(f"serving {uri}")
        run_server(uri, server, opened.context.storage, opened.workspace.work_dir / "served")


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
    from ...components.deployment.registry import ModelRegistry
    from ..run.session import session

    if output not in ("yaml", "json"):
        raise typer.BadParameter("yaml or json", param_hint="--output")
    with session(load(preset, overrides), workspace, exclusive=False) as opened:
        registered = ModelRegistry(opened.context.tracking).find(version)
        if dry_run:
            typer.echo(_manifest(opened, registered, output), nl=False)
        else:
            _deploy(opened, registered, hold)


def service_lines(opened: Session) -> list[str]:
    """What is in service and what waits beside it, a line each: the registry's champion, then the cluster's view."""
    from ...components.deployment.registry import champion
    from ...components.deployment.rollout import status

    now = champion(opened.context.tracking)
    lines = [f"champion: {f'{now.name}/{now.version}, {now.source}' if now is not None else 'none yet'}"]
    if opened.config.deployment.target == "kserve":
        name = opened.config.deployment.kserve.name
        _, service = _inference_service(opened.config)
        lines += status.service_lines(service) if service else [f"no InferenceService {name} on the cluster"]
    return lines


def _inference_service(config: Config) -> tuple[Cluster, Object | None]:
    """The cluster, and the InferenceService where there is one."""
    from ...components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster

    cluster = Cluster.connect(config.launch.cluster.namespace)
    return cluster, cluster.get(INFERENCE_SERVICE, config.deployment.kserve.name)


def _manifest(opened: Session, version: RegisteredVersion, output: str) -> str:
    """The InferenceService as text."""
    import json

    import yaml

    from ...components.deployment.rollout.inference_service import inference_service
    from ...components.deployment.rollout.trained_model import TrainedModel

    model = TrainedModel.read(opened.storage, version.source)
    body = inference_service(version, model, opened.config.deployment, opened.config.launch)
    if output == "json":
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110)


def _deploy(opened: Session, version: RegisteredVersion, hold: bool = False) -> None:
    import logging

    from ...components.deployment.deploy import deploy_registered

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    typer.echo(f"version {version.version} of '{version.name}': {version.source}")
    outcome = deploy_registered(opened.context, opened.config.deployment, version, opened.storage, hold)
    typer.echo(outcome.smoke.why)
    if outcome.in_service:
        typer.echo(f"version {version.version} is in service (champion)")
    else:
        typer.echo(f"version {version.version} waits beside the model in service: vthink promote, or vthink rollback")


def promote(preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE) -> None:
    """Give the candidate that `vthink deploy --hold` left beside the model in service all of the traffic.

    It is asked the held-out items once more first.
    """
    from ...components.common.errors import UserError
    from ...components.deployment.registry import ModelRegistry
    from ...components.deployment.rollout.status import canaries
    from ..run.session import session

    config = load(preset, overrides)
    if config.deployment.target == "local":
        raise UserError("deployment.target=local has no candidates beside the model in service; use `vthink deploy`")
    _, service = _inference_service(config)
    waiting = list(canaries(service)) if service is not None else []
    if not waiting:
        name = config.deployment.kserve.name
        raise UserError(f"the InferenceService {name} has no candidate; begin with `vthink deploy --hold`")
    with session(config, workspace, exclusive=False) as opened:
        _deploy(opened, ModelRegistry(opened.context.tracking).find(waiting[0].removeprefix("v")))


def rollback(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION|ALIAS", help="Default: what was in service before the champion.")
    ] = None,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Take a waiting candidate away; where none waits, bring the version before the champion back into service."""
    from ...components.common.errors import UserError
    from ...components.deployment.registry import CHAMPION, REPLACED, ModelRegistry
    from ...components.deployment.rollout.rollout import withdraw
    from ..run.session import session

    config = load(preset, overrides)
    if config.deployment.target == "kserve" and version is None:
        cluster, service = _inference_service(config)
        if service is not None and withdraw(cluster, config.deployment.kserve.name):
            stays = service["spec"]["predictor"].get("name", "what was")
            typer.echo(f"took the candidate away; in service stays {stays}")
            return
    with session(config, workspace, exclusive=False) as opened:
        registry = ModelRegistry(opened.context.tracking)
        if version is None:
            champion = registry.find(CHAMPION)
            version = champion.tags.get(REPLACED)
            if version is None:
                raise UserError(f"nothing was in service before version {champion.version}; name a version")
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

    from rich.console import Console
    from rich.markup import escape

    from ...components.common.chat_endpoint.endpoint import BlockingEndpoint
    from ...components.deployment.ask import FileQuestion, served_endpoint
    from ...components.deployment.ask import ask as ask_server

    console = Console(highlight=False)
    stream = None if json_output else lambda piece: console.print(piece, end="", markup=False, style="dim")
    file_question = FileQuestion(path=video, text=question, options=option or ())
    with BlockingEndpoint(served_endpoint(url, model or "")) as endpoint:
        answer = ask_server(endpoint, file_question, on_delta=stream)
    if json_output:
        print(json.dumps(answer.to_json(), indent=2, ensure_ascii=False))
        return
    console.print("\n")
    for segment in answer.view.segments:
        console.print(f"[cyan]{segment.start_s:.1f}–{segment.end_s:.1f} s[/] {escape(segment.caption)}")
    console.print(f"[bold]{escape(answer.view.answer or 'no answer')}[/]")
