"""A registered model in service: ``vthink serve``, ``ask``, ``deploy``, ``promote``, ``rollback``."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from rich.console import Console
from rich.markup import escape
from typer import Argument, BadParameter, Option, echo

from ...components.common.chat_endpoint.endpoint import BlockingEndpoint
from ...components.common.errors import UserError
from ...components.common.launch.kubernetes.client import INFERENCE_SERVICE, Cluster, Object
from ...components.common.launch.process import limit_threads
from ...components.deployment.ask import FileQuestion, served_endpoint
from ...components.deployment.ask import ask as ask_server
from ...components.deployment.config import ServerConfig
from ...components.deployment.deploy import deploy_registered
from ...components.deployment.registry import CHAMPION, REPLACED, ModelRegistry, RegisteredVersion
from ...components.deployment.registry import champion as champion_version
from ...components.deployment.rollout import inference_service as rollout
from ...components.deployment.rollout.inference_service import TrainedModel, inference_service
from ...components.deployment.rollout.rollout import withdraw
from ...components.deployment.server.serve import run_server
from ..config import Config, load
from ..run.session import Session, session
from .options import WORKSPACE, Folder, Overrides, Preset

Version = Annotated[str, Argument(metavar="VERSION|ALIAS", help="In the registry, e.g. 7 or candidate.")]


def serve(
    model: Annotated[str, Argument(help="A folder, an s3://…/ prefix, or a version or alias.")] = "champion",
    port: Annotated[int | None, Option(help="TCP port; default: the configuration's.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Serve a model: OpenAI chat completions with video, and a page to try it, on this machine only by default."""
    config = load(preset, overrides)
    limit_threads(config.launch)
    server = config.deployment.server
    if port is not None:
        server = type(server).load(server.model_dump() | {"port": port}, "--port")
    echo(how_to_ask(server))
    if Path(model).is_dir():
        run_server(model, server)
        return
    if "/" in model and not model.startswith("s3://"):
        raise UserError(f"{model}: no such model folder")
    with session(config, workspace, exclusive=False) as opened:
        uri = model if model.startswith("s3://") else ModelRegistry(opened.context.tracking).find(model).source
        echo(f"serving {uri}")
        run_server(uri, server, opened.context.storage, opened.workspace.work_dir / "served")


def how_to_ask(server: ServerConfig) -> str:
    """What a person needs to know of the server that starts, ready to copy."""
    url = f"http://{f'[{server.host}]' if ':' in server.host else server.host}:{server.port}"
    body = (
        f'{{"model": "{server.model_name}", "messages": [{{"role": "user", "content": [{{"type": "video_url", '
        '"video_url": {"url": "data:video/mp4;base64,\'$(base64 -w0 clip.mp4)\'"}}, '
        '{"type": "text", "text": "What happens?"}]}]}'
    )
    return (
        f"page      {url} (once the model is loaded)\n"
        f"endpoint  {url}/v1, model {server.model_name}: OpenAI's chat completions\n"
        f"ask       vthink ask {url} clip.mp4 'What happens?'\n"
        f"curl      echo '{body}' | curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d @-"
    )


def deploy(
    version: Version = "candidate",
    dry_run: Annotated[bool, Option("--dry-run", help="Print the InferenceService; change nothing.")] = False,
    output: Annotated[str, Option("--output", "-o", metavar="yaml|json", help="Format of --dry-run.")] = "yaml",
    hold: Annotated[bool, Option("--hold", help="On a cluster: stop beside the model in service.")] = False,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Test a registered version with held-out items, and make it the one in service if it agrees with its evaluation.

    With deployment.target=kserve it starts beside the model in service, is compared with it, gets a share of the
    traffic and then all of it. A version that fails is taken away; what was in service stays."""
    if output not in ("yaml", "json"):
        raise BadParameter("yaml or json", param_hint="--output")
    with session(load(preset, overrides), workspace, exclusive=False) as opened:
        registered = ModelRegistry(opened.context.tracking).find(version)
        if not dry_run:
            _deploy(opened, registered, hold)
            return
        model = TrainedModel.read(opened.storage, registered)
        body = inference_service(registered, model, opened.config.deployment, opened.config.launch)
        if output == "json":
            echo(json.dumps(body, indent=2, ensure_ascii=False))
        else:
            echo(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=110), nl=False)


def _deploy(opened: Session, version: RegisteredVersion, hold: bool = False) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    echo(f"version {version.version} of '{version.name}': {version.source}")
    outcome = deploy_registered(opened.context, opened.config.deployment, version, opened.storage, hold)
    echo(outcome.smoke.why)
    if outcome.in_service:
        echo(f"version {version.version} is in service (champion)")
    else:
        echo(f"version {version.version} waits beside the model in service: vthink promote, or vthink rollback")


def service_lines(opened: Session) -> list[str]:
    """What is in service and what waits beside it, a line each: the registry's champion, then the cluster's view."""
    now = champion_version(opened.context.tracking)
    lines = [f"champion: {f'{now.name}/{now.version}, {now.source}' if now is not None else 'none yet'}"]
    if opened.config.deployment.target == "kserve":
        name = opened.config.deployment.kserve.name
        _, service = _inference_service(opened.config)
        lines += rollout.service_lines(service) if service else [f"no InferenceService {name} on the cluster"]
    return lines


def _inference_service(config: Config) -> tuple[Cluster, Object | None]:
    """The cluster, and the InferenceService where there is one."""
    cluster = Cluster.connect(config.launch.cluster.namespace)
    return cluster, cluster.get(INFERENCE_SERVICE, config.deployment.kserve.name)


def promote(preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE) -> None:
    """Give the candidate that `vthink deploy --hold` left beside the model in service all of the traffic.

    It is asked the held-out items once more first."""
    config = load(preset, overrides)
    if config.deployment.target == "local":
        raise UserError("deployment.target=local has no candidates beside the model in service; use `vthink deploy`")
    _, service = _inference_service(config)
    waiting = list(rollout.canaries(service)) if service is not None else []
    if not waiting:
        name = config.deployment.kserve.name
        raise UserError(f"the InferenceService {name} has no candidate; begin with `vthink deploy --hold`")
    with session(config, workspace, exclusive=False) as opened:
        _deploy(opened, ModelRegistry(opened.context.tracking).find(waiting[0].removeprefix("v")))


def rollback(
    version: Annotated[str | None, Argument(metavar="VERSION|ALIAS", help="Default: the one before.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Take a waiting candidate away; where none waits, bring the version before the champion back into service."""
    config = load(preset, overrides)
    if config.deployment.target == "kserve" and version is None:
        cluster, service = _inference_service(config)
        if service is not None and withdraw(cluster, config.deployment.kserve.name):
            stays = service["spec"]["predictor"].get("name", "what was")
            echo(f"took the candidate away; in service stays {stays}")
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
    url: Annotated[str, Argument(help="The server, e.g. http://127.0.0.1:8080.")],
    video: Annotated[Path, Argument(help="A video or an image file.")],
    question: Annotated[str, Argument(help="The question.")],
    option: Annotated[list[str] | None, Option("--option", "-o", help="An answer to choose from. Repeatable.")] = None,
    json_output: Annotated[bool, Option("--json", help="Print the whole result as JSON.")] = False,
    model: Annotated[str | None, Option(help="Name of the served model, where the server asks for one.")] = None,
) -> None:
    """Ask a served model about a video, and show its answer with the segments it rests on.

    A server that asks for a key gets the one in VTHINK_API_KEY."""
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
    console.print(f"[bold]{escape(with_option(answer.view.answer or 'no answer', option or ()))}[/]")


def with_option(answer: str, options: Sequence[str]) -> str:
    """A letter with its option, as the page shows it."""
    place = ord(answer) - ord("A") if len(answer) == 1 else -1
    return f"{answer} · {options[place]}" if 0 <= place < len(options) else answer
