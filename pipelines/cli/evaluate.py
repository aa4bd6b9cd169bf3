"""``vthink evaluate``: models side by side on held-out questions, or one model on a public benchmark."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from ...components.common.errors import UserError
from .settings import WORKSPACE, Folder, Overrides, Preset, load

if TYPE_CHECKING:
    from rich.table import Table

    from ...components.evaluation.results import Result
    from ...components.evaluation.statistics import Estimate
    from ..config import Config

_BENCHMARK = "With --benchmark"


class NamesBenchmarks(TyperCommand):
    """Names the benchmarks in its help, which are read only for that: they bring numpy with them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        from ...components.evaluation.benchmarks.registry import BENCHMARKS

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "benchmark":
                option.help = str(option.help).replace("{names}", ", ".join(BENCHMARKS))
        super().format_help(ctx, formatter)


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
            help="{names}, my_module:BENCHMARK, or a YAML file that describes a set of your own.",
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

    config = load(preset, overrides)
    if benchmark is None:
        options = {"--model": model, "--output": output, "--protocol": protocol, "--frames": frames}
        options |= {"--reliance": reliance or None, "--retry-failed": retry_failed or None}
        lost = [name for name, value in options.items() if value is not None]
        if lost:
            raise UserError(f"{', '.join(lost)} only with --benchmark NAME")
        _evaluate_split(config, data, sft, grpo, report, workspace)
        return
    if sft or grpo or report:
        raise UserError("--sft, --grpo and --report are for the held-out split; a benchmark takes --model")
    if data is None or model is None or output is None:
        wanted = {"--data": data, "--model": model, "--output": output}
        raise UserError(f"--benchmark needs {', '.join(name for name, value in wanted.items() if value is None)}")
    chosen = {"protocol": protocol, "num_frames": frames, "reliance": reliance, "retry_failed": retry_failed}
    _evaluate_benchmark(config, benchmark, data, model, output, workspace, chosen)


def _evaluate_split(
    config: Config, data: str | None, sft: str | None, grpo: str | None, report: Path | None, workspace: Path
) -> None:
    from rich.console import Console

    from ...components.common.storage.manifest import Manifest
    from ...components.evaluation.evaluate import evaluate_models
    from ..run.session import find_data, find_manifest, session
    from .summary import accuracy_table

    with session(config, workspace) as opened:
        of_sft, of_grpo = (find_manifest(opened, where) if where else "" for where in (sft, grpo))
        sections = (opened.context.to_json(), config.evaluation.to_json(), config.model.to_json())
        uri = evaluate_models(*sections, find_data(opened, data), of_sft, of_grpo, str(report) if report else None)
        result = opened.storage.read_json(Manifest.read(opened.storage, uri).files["result"])
    Console(highlight=False).print(accuracy_table(result))
    print(uri)


def _evaluate_benchmark(
    config: Config, benchmark: str, data: str, model: str, output: Path, workspace: Path, chosen: dict[str, Any]
) -> None:
    from rich.console import Console

    from ...components.common.launch.process import limit_threads
    from ...components.evaluation.benchmarks.registry import find_benchmark
    from ...components.evaluation.evaluate_benchmark import evaluate_benchmark
    from ...components.evaluation.models.open import needs_store
    from ..run.session import session

    limit_threads(config.launch)
    find_benchmark(benchmark)  # before a store is started for it
    stored = needs_store(model) or data.startswith("s3://")
    with session(config, workspace, exclusive=False) if stored else nullcontext() as opened:
        result = evaluate_benchmark(
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
    missing = f", {result.missing_videos} of them missing" if result.missing_videos else ""
    failed = f"; {len(result.failed)} failed, counted as wrong" if result.failed else ""
    console.print(
        f"[bold]{result.title}[/]: {result.items:,} questions, {result.videos:,} videos{missing}{failed}",
        soft_wrap=True,
    )
    console.print(_benchmark_table(result))
    for name, why in result.left_out.items():
        console.print(f"{name.replace('_', ' ')}: not measured, {why}", style="dim", soft_wrap=True)
    print(output / "result.json")


def _benchmark_table(result: Result) -> Table:
    """A benchmark's scores and what the model does without the video, for a terminal."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("")
    for name in ("value", f"{100 * result.confidence:g} %", "n"):
        table.add_column(name, justify="right")

    def add(name: str, estimate: Estimate, style: str | None = None) -> None:
        interval = f"\\[{estimate.low:.3f}, {estimate.high:.3f}]"
        table.add_row(name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}", style=style)

    for name, estimate in result.metrics.items():
        add(name, estimate, "bold" if name == result.headline else None)
    for condition, cell in result.conditions.items():
        if condition != "ordered":
            add(f"{result.headline}, {condition.replace('_', ' ')}", cell.scores[result.headline])
    return table
