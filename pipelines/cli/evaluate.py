"""Measuring models and judging the results: ``vthink evaluate``, ``compare`` and ``gate``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import yaml
from rich.console import Console
from typer import Argument, Exit, Option

from ...components.common.errors import UserError
from ...components.common.launch.process import limit_threads
from ...components.common.storage.manifest import Manifest
from ...components.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from ...components.evaluation.config import EvaluationConfig
from ...components.evaluation.evaluate import evaluate_models
from ...components.evaluation.evaluate_benchmark import evaluate_benchmark
from ...components.evaluation.gate import judge
from ...components.evaluation.models import needs_store
from ...components.evaluation.report.items import folder_clips
from ...components.evaluation.report.pages import benchmark_page
from ...components.evaluation.results import HELD_OUT, BenchmarkResult, Result, read_benchmark, sealed
from ...components.evaluation.rules import GateRule, read_rule
from ...components.evaluation.stored_answers import grade_stored
from ...components.evaluation.summary import compare as compare_results
from ...components.evaluation.summary import in_one_sentence
from ..config import Config, load
from ..preflight.examine import require_run
from ..run.session import find_data, find_manifest, session
from .display import accuracy_table, table
from .options import DATA_HELP, REFUSED, WORKSPACE, Folder, Overrides, Preset


def _with_benchmark(text: str, *names: str, **settings: Any) -> Any:
    return Option(*names, help=text, rich_help_panel="With --benchmark", **settings)


_BENCHMARK_DATA = (
    "With --benchmark: the folder or s3:// prefix with its published annotation file and its videos, or 'hub'."
)
_BENCHMARK = f"{', '.join(BENCHMARKS)}, my_module:BENCHMARK, or a YAML file that describes a set of your own."
_MODEL = (
    "A folder, an s3:// prefix, models:/name@alias or models:/name/3 of the registry, a name on the hub, or the URL of "
    "an OpenAI-compatible endpoint (its key: VTHINK_API_KEY)."
)
_OUTPUT = "For result.json and items.jsonl; run again, it goes on where it was."
_PROTOCOL = "A paper's frames, pixels and sampling: video_r1 or video_thinker. Default: as trained, greedily."
_ANSWERS = (
    "Grade these stored answers instead of asking a model: our items.jsonl, lmms-eval's samples, Video-R1's JSON, or "
    "JSONL or CSV with id and response. The videos are not needed."
)
_GRADER = "With --answers: strict (ours), paper (Video-R1's code) or official (the benchmark's own rule)."
_RELIANCE = "Also ask with frames shuffled, reversed, one alone, and without the video: is it needed?"


def evaluate(
    data: Annotated[str | None, Option(metavar="URI|PATH", help=f"{DATA_HELP} {_BENCHMARK_DATA}")] = None,
    sft: Annotated[str | None, Option(metavar="URI|PATH", help="What SFT left.")] = None,
    grpo: Annotated[str | None, Option(metavar="URI|PATH", help="What GRPO left.")] = None,
    report: Annotated[Path | None, Option(help="Also write the HTML report to this file.")] = None,
    benchmark: Annotated[str | None, _with_benchmark(_BENCHMARK, metavar="NAME|FILE")] = None,
    model: Annotated[str | None, _with_benchmark(_MODEL, metavar="MODEL")] = None,
    output: Annotated[Path | None, _with_benchmark(_OUTPUT, metavar="DIR")] = None,
    protocol: Annotated[str | None, _with_benchmark(_PROTOCOL, metavar="NAME")] = None,
    frames: Annotated[int | None, _with_benchmark("Frames per video, e.g. 16, 32 or 64.", min=1, max=1024)] = None,
    answers: Annotated[Path | None, _with_benchmark(_ANSWERS, metavar="FILE")] = None,
    grader: Annotated[str | None, _with_benchmark(_GRADER, metavar="NAME")] = None,
    reliance: Annotated[bool, _with_benchmark(_RELIANCE, "--reliance")] = False,
    retry_failed: Annotated[bool, _with_benchmark("Ask the items that failed again.", "--retry-failed")] = False,
    preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Evaluate base, SFT and GRPO on the held-out split; or, with --benchmark, one model on a public benchmark."""
    config = load(preset, overrides)
    if benchmark is None:
        options = {"--model": model, "--output": output, "--protocol": protocol, "--frames": frames}
        options |= {"--answers": answers, "--grader": grader}
        options |= {"--reliance": reliance or None, "--retry-failed": retry_failed or None}
        if lost := [name for name, value in options.items() if value is not None]:
            raise UserError(f"{', '.join(lost)} only with --benchmark NAME")
        _evaluate_split(config, data, sft, grpo, report, workspace)
        return
    if sft or grpo or report:
        raise UserError("--sft, --grpo and --report are for the held-out split; a benchmark takes --model")
    if answers is not None:
        if data is None or output is None:
            raise UserError("--answers needs --data, the folder with the benchmark's annotation file, and --output")
        if model or protocol or frames or reliance or retry_failed:
            raise UserError(
                "--answers asks no model: leave --model, --protocol, --frames, --reliance, --retry-failed out"
            )
        stored = data.startswith("s3://")
        with session(config, workspace, exclusive=False) if stored else nullcontext() as opened:
            result = grade_stored(
                benchmark, data, answers, output, config=config.evaluation, grader=grader or "strict",
                work_dir=workspace / "work" / "benchmarks", storage=opened.storage if opened else None,
            )  # fmt: skip
        _print_benchmark(result)
        print(output / "result.json")
        return
    if grader is not None:
        raise UserError("--grader only with --answers; grade the answers in --output again with it")
    if data is None or model is None or output is None:
        wanted = {"--data": data, "--model": model, "--output": output}
        raise UserError(f"--benchmark needs {', '.join(name for name, value in wanted.items() if value is None)}")
    limit_threads(config.launch)
    find_benchmark(benchmark)  # before a store is started for it
    stored = needs_store(model) or data.startswith("s3://")
    with session(config, workspace, exclusive=False) if stored else nullcontext() as opened:
        result = evaluate_benchmark(
            benchmark, data, model, output,
            config=config.evaluation, model_config=config.model, video=config.video,
            work_dir=workspace / "work" / "benchmarks",
            storage=opened.storage if opened else None,
            tracking=opened.context.tracking if opened else None,
            protocol=protocol, num_frames=frames, reliance=reliance, retry_failed=retry_failed,
        )  # fmt: skip
    _print_benchmark(result)
    print(output / "result.json")


def _evaluate_split(
    config: Config, data: str | None, sft: str | None, grpo: str | None, report: Path | None, workspace: Path
) -> None:
    with session(config, workspace) as opened:
        require_run(opened, ["evaluate"], data)
        of_sft, of_grpo = (find_manifest(opened, where) if where else "" for where in (sft, grpo))
        sections = (opened.context.to_json(), config.evaluation.to_json(), config.model.to_json())
        uri = evaluate_models(*sections, find_data(opened, data), of_sft, of_grpo, str(report) if report else None)
        result = opened.storage.read_json(Manifest.read(opened.storage, uri).files["result"])
    Console(highlight=False).print(accuracy_table(result))
    print(uri)


def _print_benchmark(result: Result) -> None:
    """A benchmark's scores and what the model does without the video."""
    console = Console(highlight=False)
    missing = f", {result.missing_videos} of them missing" if result.missing_videos else ""
    failed = f"; {len(result.failed)} failed, counted as wrong" if result.failed else ""
    counts = f"{result.items:,} questions, {result.videos:,} videos{missing}{failed}"
    console.print(f"[bold]{result.title}[/]: {counts}", soft_wrap=True)
    estimates = dict(result.metrics)
    for condition, cell in result.conditions.items():
        if condition != "ordered":
            estimates[f"{result.headline}, {condition.replace('_', ' ')}"] = cell.scores[result.headline]
    shown = table("", "value", f"{100 * result.confidence:g} %", "n")
    for name, estimate in estimates.items():
        interval = f"\\[{estimate.low:.3f}, {estimate.high:.3f}]"
        style = "bold" if name == result.headline else None
        shown.add_row(name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}", style=style)
    console.print(shown)
    for name, why in result.left_out.items():
        console.print(f"{name.replace('_', ' ')}: not measured, {why}", style="dim", soft_wrap=True)


_RESULTS = "NAME=DIR, or DIR: what `vthink evaluate --benchmark … --output DIR` left"


def compare(
    results: Annotated[list[str], Argument(metavar="[NAME=]DIR...", help=_RESULTS, show_default=False)],
    report: Annotated[Path | None, Option(metavar="FILE", help="Write the HTML report to this file.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None,
) -> None:  # fmt: skip
    """Compare models on benchmarks: intervals, paired tests, published figures; the first named is compared with.

    The same NAME twice on one benchmark means two runs: mean and spread are shown. Pictures of evaluation.report_items
    items are taken from the benchmark's folder where it is still there."""
    config = load(preset, overrides).evaluation
    measured = [_read_result(argument) for argument in results]
    for other in measured[1:]:
        if why := measured[0].incomparable(other):
            raise UserError(why)
    _print_comparison(measured, config)
    if report is not None:
        with folder_clips(measured) as clips:
            page = benchmark_page(measured, config, clips)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page, "utf-8")
        print(report)


def _read_result(argument: str) -> BenchmarkResult:
    name, equals, folder = argument.partition("=")
    if equals and not Path(argument).exists():
        return read_benchmark(folder, name.strip()[:60] or None)
    return read_benchmark(argument)


def _print_comparison(results: list[BenchmarkResult], config: EvaluationConfig) -> None:
    """Models and their differences to the first."""
    interval = "95 %" if config.confidence == 0.95 else "interval"
    shown = table("benchmark", "model", "score", interval, "n", "against the first", left=(0, 1, 3, 5))
    firsts: dict[str, BenchmarkResult] = {}
    for result in results:
        score, first, against = result.ordered.scores[result.headline], firsts.setdefault(result.key, result), ""
        if first is not result:
            difference = compare_results(result, first, result.headline, config.resampling)
            if difference is None:
                against = "not the same questions"
            else:
                against = f"{100 * difference.value:+.1f} points, p = {difference.p_value:.2g}: {difference.verdict}"
                if difference.verdict.startswith("no ") and difference.detectable:
                    against += f" (detectable: {100 * difference.detectable:.1f})"
        cells = f"{100 * score.value:.1f} %", f"{100 * score.low:.1f} – {100 * score.high:.1f}", f"{score.n:,}"
        shown.add_row(result.result.title, result.model, *cells, against)
    console = Console(highlight=False)
    console.print(shown)
    by_benchmark: dict[str, BenchmarkResult] = {result.key: result for result in results}
    for key, last in by_benchmark.items():
        if firsts[key] is not last and firsts[key].model != last.model:
            console.print(in_one_sentence(firsts[key], last, config.resampling), soft_wrap=True, markup=False)


def gate(
    candidate: Annotated[list[Path], Option(metavar="DIR", help="Results of the candidate. Repeatable.")],
    rules: Annotated[list[str] | None, Argument(metavar="RULE...", help="Rules that must all hold, as YAML.")] = None,
    rules_file: Annotated[Path | None, Option("--rules", metavar="FILE", help="YAML with a list of rules.")] = None,
    champion: Annotated[list[Path] | None, Option(metavar="DIR", help="Results of the model in service.")] = None,
    base: Annotated[list[Path] | None, Option(metavar="DIR", help="Results of the base model.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None,
) -> None:  # fmt: skip
    """Judge rules about finished benchmarks, line by line; exit code 3 where one does not hold.

    DIR is what `vthink evaluate --benchmark … --output DIR` left. A rule that names no benchmark is about the one that
    was measured."""
    config = load(preset, overrides).evaluation
    parsed = [rule for text in rules or () for rule in _parse_rules(text, f"rule '{text}'")]
    if rules_file is not None:
        parsed += _parse_rules(rules_file.read_text("utf-8"), str(rules_file))
    if not parsed:
        raise UserError("there are no rules: give one, such as '{metric: accuracy, at_least: 0.4}', or --rules FILE")
    folders = {"candidate": candidate, "champion": champion, "base": base}
    models = {
        name: _by_benchmark([sealed(read_benchmark(path, name)) for path in paths])
        for name, paths in folders.items()
        if paths
    }
    for rule in parsed:
        if rule.other_model in folders and rule.other_model not in models:
            raise UserError(f"rule '{rule}' needs the results of {rule.other_model}: give --{rule.other_model} DIR")
    verdict = judge(parsed, models, config.resampling)
    print(*verdict.lines, sep="\n")
    if not verdict.passed:
        raise Exit(REFUSED)


def _by_benchmark(results: list[BenchmarkResult]) -> dict[str, BenchmarkResult]:
    """Results of one model by benchmark; where there is one alone, rules that name no benchmark are about it."""
    by_name = {result.benchmark: result for result in results}
    if len(by_name) < len(results):
        raise UserError(f"'{results[0].model}' has two results of one benchmark; give one")
    return by_name | ({HELD_OUT: results[0]} if len(results) == 1 else {})


def _parse_rules(text: str, source: str) -> list[GateRule]:
    """The rules of a YAML text: one, or a list."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source[:80]}: not YAML ({str(error).splitlines()[0]})") from None
    return [read_rule(rule, source) for rule in (data if isinstance(data, list) else [data])]
