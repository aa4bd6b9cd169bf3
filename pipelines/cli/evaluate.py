"""``vthink evaluate``: models side by side on held-out questions, or one model on a public benchmark."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .settings import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from ..config import Config

_BENCHMARK = "With --benchmark"


def evaluate(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="URI|PATH",
            help="A prepared set (its manifest or prefix), or rows to prepare first; default: the rows of data.source. "
            "With --benchmark: the folder or s3:// prefix with its published annotation file and its videos, or 'hub'.",
        ),
    ] = None,
    sft: Annotated[str | None, typer.Option(metavar="URI|PATH", help="What SFT left.")] = None,
    grpo: Annotated[str | None, typer.Option(metavar="URI|PATH", help="What GRPO left.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the HTML report to this file.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="video-holmes, cg-bench, cg-bench-reasoning, vrbench, vrbench-summary, videommmu, vsi-bench, mmvu, "
            "mvbench, tempcompass, videomme, or a YAML file that describes a set of your own.",
            rich_help_panel=_BENCHMARK,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A folder, an s3:// prefix, models:/name@alias or models:/name/3 of the registry, a name on the hub, "
            "or the URL of an OpenAI-compatible endpoint (its key: VTHINK_API_KEY).",
            rich_help_panel=_BENCHMARK,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For result.json and items.jsonl; run again, it goes on where it was.",
            rich_help_panel=_BENCHMARK,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Frames, pixels and sampling of a paper: video_r1 or video_thinker. "
            "Default: as the model was trained, greedily.",
            rich_help_panel=_BENCHMARK,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Frames per video, e.g. 16, 32 or 64.", rich_help_panel=_BENCHMARK),
    ] = None,
    reliance: Annotated[
        bool,
        typer.Option(
            "--reliance",
            help="Also ask with frames shuffled, reversed, one alone, and without the video: is it needed?",
            rich_help_panel=_BENCHMARK,
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Ask the items that failed again.", rich_help_panel=_BENCHMARK),
    ] = False,
    preset: Preset = "laptop",
    overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Evaluate base, SFT and GRPO on the held-out split; or, with --benchmark, one model on a public benchmark."""
    from ...components.evaluation.answers import EvaluationError

    config = load(preset, overrides)
    if benchmark is None:
        given = {"--model": model, "--output": output, "--protocol": protocol, "--frames": frames}
        given |= {"--reliance": reliance or None, "--retry-failed": retry_failed or None}
        lost = [name for name, value in given.items() if value is not None]
        if lost:
            raise EvaluationError(f"{', '.join(lost)} only with --benchmark NAME")
        _evaluate_split(config, data, sft, grpo, report, workspace)
        return
    if sft or grpo or report:
        raise EvaluationError("--sft, --grpo and --report are for the held-out split; a benchmark takes --model")
    if data is None or model is None or output is None:
        wanted = {"--data": data, "--model": model, "--output": output}
        raise EvaluationError(f"--benchmark needs {', '.join(name for name, value in wanted.items() if value is None)}")
    chosen = {"protocol": protocol, "num_frames": frames, "reliance": reliance, "retry_failed": retry_failed}
    _evaluate_benchmark(config, benchmark, data, model, output, workspace, chosen)


def _evaluate_split(
    config: Config, data: str | None, sft: str | None, grpo: str | None, report: Path | None, workspace: Path
) -> None:
    from rich.console import Console

    from ...components.common.storage.manifest import Manifest
    from ...components.evaluation import evaluate as evaluate_module
    from ..run.session import find_data, find_manifest, session
    from .summary import accuracy_table

    with session(config, workspace) as opened:
        of_sft, of_grpo = (find_manifest(opened, given) if given else "" for given in (sft, grpo))
        told = (opened.context.to_json(), config.evaluation.to_json(), config.model.to_json())
        uri = evaluate_module.run(*told, find_data(opened, data), of_sft, of_grpo, str(report) if report else None)
        result = opened.storage.read_json(Manifest.read(opened.storage, uri).files["result"])
    Console(highlight=False).print(accuracy_table(result))
    print(uri)


def _evaluate_benchmark(
    config: Config, benchmark: str, data: str, model: str, output: Path, workspace: Path, chosen: dict[str, Any]
) -> None:
    from rich.console import Console

    from ...components.evaluation.benchmarks.registry import find_benchmark
    from ...components.evaluation.models.open import needs_store
    from ...components.evaluation.run_benchmark import run_benchmark
    from ..run.session import session

    find_benchmark(benchmark)  # before a store is started for it
    stored = needs_store(model) or data.startswith("s3://")
    with session(config, workspace, exclusive=False) if stored else nullcontext() as opened:
        result = run_benchmark(
            benchmark,
            data,
            model,
            output,
            config=config.evaluation,
            model_config=config.model,
            video=config.video,
            work_dir=workspace / "work" / "benchmarks",
            storage=opened.storage if opened else None,
            tracking=opened.context.tracking if opened else None,
            **chosen,
        )
    console = Console(highlight=False)
    missing = f", {result['missing_videos']} of them missing" if result["missing_videos"] else ""
    failed = f"; {len(result['failed'])} failed, counted as wrong" if result["failed"] else ""
    console.print(
        f"[bold]{result['title']}[/]: {result['items']:,} questions, {result['videos']:,} videos{missing}{failed}",
        soft_wrap=True,
    )
    console.print(benchmark_table(result))
    for name, why in result["left_out"].items():
        console.print(f"{name.replace('_', ' ')}: not measured, {why}", style="dim", soft_wrap=True)
    print(output / "result.json")


def benchmark_table(result: dict[str, Any]) -> Any:
    """A benchmark's scores and what the model does without the video, for a terminal."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("")
    for name in ("value", f"{100 * result['confidence']:g} %", "n"):
        table.add_column(name, justify="right")

    def add(name: str, found: dict[str, float], style: str | None = None) -> None:
        interval = f"[{found['low']:.3f}, {found['high']:.3f}]".replace("[", "\\[", 1)
        table.add_row(name, f"{found['value']:.3f}", interval, f"{found['n']:,}", style=style)

    for name, found in result["metrics"].items():
        add(name, found, "bold" if name == result["headline"] else None)
    for condition, cell in result["conditions"].items():
        if condition != "ordered":
            add(f"{result['headline']}, {condition.replace('_', ' ')}", cell["scores"][result["headline"]])
    return table
