"""Runs and training on this machine: ``vthink run``, ``train``, ``plan`` and ``config``."""

import re
import sys
from typing import Annotated

from rich.console import Console
from typer import Argument, BadParameter, Exit, Option

from ...components.common.model.shapes import shape_of
from ...components.common.training.stage import train_stage
from ...components.grpo.config import GRPOConfig
from ...components.sft.config import SFTConfig
from .. import config as configuration
from ..config import Config, load
from ..plan.footage import Footage, visual_tokens
from ..plan.memory import ACCELERATORS, GIB
from ..plan.stage import StagePlan, fastest, layouts, node_of, stored_bytes
from ..preflight.examine import require_run
from ..run.execute import StageFailedError, run_pipeline
from ..run.session import find_data, find_manifest, session
from ..run.state import StagePreview, preview_stages
from ..run.status import read_progress, repeated
from ..run.summary import write_summary
from .display import ProgressView, print_findings, show_summary, table
from .options import REFUSED, WORKSPACE, Data, Folder, Overrides, Policy, Preset, Restart


def run(
    preset: Preset = "laptop", overrides: Overrides = None, from_stage: Restart = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would run and what is reused.")] = False,
    workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Run the whole pipeline on this machine: prepare, SFT, GRPO, evaluate, gate, register, deploy.

    Finished stages are reused, a killed run resumes. The exit code is 3 when the gate refuses the model."""
    console = Console(highlight=False)
    with session(load(preset, overrides), workspace) as opened:
        if dry_run:
            _print_preview(console, preview_stages(opened, from_stage))
            print_findings(console, require_run(opened))
            return
        require_run(opened)
        try:
            with ProgressView(console) as view:
                outcome = run_pipeline(opened, from_stage, view.update)
        except KeyboardInterrupt:
            for progress in (read_progress(workspace) or ("", {}))[1].values():
                if progress.status == "running":
                    print(f"\n{repeated(workspace, progress)} (vthink run)", file=sys.stderr)
            raise
        except StageFailedError as error:
            print(*(f"  {line}" for line in error.last_lines), sep="\n", file=sys.stderr)
            raise
        summary = write_summary(opened, outcome)
    show_summary(console, summary, workspace)
    if not summary.gate.passed:
        raise Exit(REFUSED)


def _print_preview(console: Console, stages: list[StagePreview]) -> None:
    shown = table("stage", "plan", "", left=(0, 1, 2))
    styles = {"run": "cyan", "reuse": "green", "skip": "dim", "check": "yellow"}
    for entry in stages:
        shown.add_row(entry.stage, f"[{styles[entry.action]}]{entry.action}[/]", entry.reason)
    console.print(shown)


def sft(
    data: Data = None, preset: Preset = "laptop", overrides: Overrides = None, workspace: Folder = WORKSPACE
) -> None:
    """Fine-tune the base model on reasoning traces. Prints the manifest's URI."""
    config = load(preset, overrides)
    with session(config, workspace) as opened:
        require_run(opened, ["sft"], data)
        sections = opened.context.to_json(), config.sft.to_json(), config.model.to_json()
        print(train_stage("sft", SFTConfig, "vthink.components.sft", *sections, find_data(opened, data)))


def grpo(
    data: Data = None, policy: Policy = None, preset: Preset = "laptop", overrides: Overrides = None,
    workspace: Folder = WORKSPACE,
) -> None:  # fmt: skip
    """Improve a model by (T-)GRPO. Prints the manifest's URI."""
    config = load(preset, overrides)
    with session(config, workspace) as opened:
        require_run(opened, ["grpo"], data)
        start = find_manifest(opened, policy) if policy else ""
        sections = opened.context.to_json(), config.grpo.to_json(), config.model.to_json()
        print(train_stage("grpo", GRPOConfig, "vthink.components.grpo", *sections, find_data(opened, data), start))


def plan(
    preset: Preset = "video_r1_7b", overrides: Overrides = None,
    gpu: Annotated[str, Option(metavar="NAME", help=f"{', '.join(ACCELERATORS)}.")] = "a100-80gb",
    gpus: Annotated[int | None, Option(min=1, help="How many; default: launch.processes × launch.nodes.")] = None,
    rows: Annotated[int, Option(min=1, help="Training rows.")] = 10_000,
    footage: Annotated[str, Option("--video", metavar="WxH:SECONDS", help="A typical video.")] = "1280x720:30",
    price: Annotated[float | None, Option(min=0, help="Of one GPU for one hour, in your currency.")] = None,
) -> None:  # fmt: skip
    """Say what a run needs: visual tokens, memory per GPU by ZeRO stage, storage, GPU-hours and cost, and what fits.

    Nothing is loaded and no GPU is needed. Tokens and parameters are exact; hours are an estimate (pipelines/plan/
    states what it rests on), without evaluation and validation."""
    config, accelerator = load(preset, overrides), ACCELERATORS.get(gpu)
    if accelerator is None:
        raise BadParameter(f"no '{gpu}'; known: {', '.join(ACCELERATORS)}", param_hint="--gpu")
    size = re.fullmatch(r"(\d+)x(\d+):(\d+(?:\.\d+)?)", footage)
    if size is None:
        raise BadParameter(f"'{footage}' is not like 1280x720:30", param_hint="--video")
    video = Footage(int(size[1]), int(size[2]), float(size[3]))
    ranks = gpus or config.launch.processes * config.launch.nodes
    shape = shape_of(config.model, config.storage, config.video.size_multiple)
    sample = visual_tokens(video, config.video, shape)
    stored = stored_bytes(config, shape, sample, rows)
    console = Console(highlight=False)
    console.print(
        f"model    {config.model.name}: {shape.parameters / 1e9:.3g} B parameters, {stored.model / 1e9:.3g} GB\n"
        f"video    {video.width}×{video.height}, {video.seconds:g} s: {sample.frames} frames of {sample.width}×"
        f"{sample.height}, {sample.patches} patches, {sample.visual} visual tokens\n"
        f"storage  data {stored.data / 1e9:.3g} GB for {rows} rows; checkpoints "
        + ", ".join(f"of {name} {size / 1e9:.3g} GB each, {kept / 1e9:.3g} GB kept"
                    for name, (size, kept) in stored.checkpoints.items())
    )  # fmt: skip
    for name in stored.checkpoints:
        node = node_of(config, name, shape, stored.data)
        console.print(
            f"a node   of {name}, {config.launch.processes} processes: {node.cpus} CPUs, {node.memory_gib} GiB memory, "
            f"{node.scratch_gib} GiB scratch"
        )
    chosen: list[StagePlan | None] = []
    for stage in ("sft", "grpo"):
        if getattr(config, stage).enabled:
            plans = layouts(config, stage, shape, sample, accelerator, rows, ranks)
            chosen.append(_print_stage(console, config, plans, gpu, accelerator.memory_gib))
    fitting = [stage_plan for stage_plan in chosen if stage_plan is not None]
    if len(fitting) < len(chosen):
        raise Exit(1)
    gpu_hours = sum(stage_plan.gpu_hours for stage_plan in fitting)
    cost = f", {gpu_hours * price:,.0f} at {price:g} per GPU-hour" if price is not None else ""
    hours = sum(stage_plan.hours for stage_plan in fitting)
    console.print(f"training {hours:.1f} h, {gpu_hours:.0f} GPU-hours{cost}")
    if config.grpo.enabled and config.grpo.vllm is not None and config.grpo.vllm.mode == "server":
        console.print("  and as long in GRPO the GPUs of the vLLM servers, which are not counted here")


def _print_stage(
    console: Console, config: Config, plans: list[StagePlan], gpu: str, memory_gib: float
) -> StagePlan | None:
    """Show a stage's layouts, its own first; returns its own or, where that does not fit, the fastest that does."""
    best, own = fastest(plans), plans[0]
    parts = ("states", "reference", "activations", "logits", "rollouts")
    title = f"{own.stage}: {own.steps} steps of {own.step_flops / 1e15:.3g} PFLOP on {own.ranks} × {gpu}"
    shown = table("deepspeed", *parts, "GiB per GPU", "hours", title=f"[bold]{title}[/]", wrap=True)
    for entry in plans:
        total = f"{entry.memory.total / GIB:.1f}" + ("" if entry.fits else f" > {memory_gib}")
        marks = [word for word, is_so in (("yours", entry is own), ("fastest", entry is best)) if is_so]
        name = entry.zero + (f" ({', '.join(marks)})" if marks else "")
        cells = [f"{getattr(entry.memory, part) / GIB:.1f}" for part in parts]
        shown.add_row(name, *cells, total, f"{entry.hours:.1f}", style="" if entry.fits else "dim")
    console.print(shown)
    if best is None:
        console.print("  none fits: more GPUs, a smaller model, lora, fewer frames, or a smaller video.max_pixels")
        if own.stage == "grpo" and config.grpo.vllm is not None and config.grpo.vllm.mode == "colocate":
            console.print("  vLLM needs room for a second copy of the weights: grpo.vllm.gpu_memory_utilization")
    elif not own.fits:
        console.print(f"  deepspeed={own.zero} does not fit: --set {own.stage}.deepspeed={best.zero}")
    return own if own.fits else best


def config_show(
    section: Annotated[str | None, Argument(help="Only this section, e.g. grpo.")] = None,
    preset: Preset = "laptop", overrides: Overrides = None,
    bare: Annotated[bool, Option("--bare", help="Without the comments.")] = False,
) -> None:  # fmt: skip
    """Print the whole configuration, defaults included, as YAML that can be edited and used, with what each key is."""
    config = load(preset, overrides)
    if bare and section is None:
        print(configuration.to_yaml(config), end="")
        return
    text = configuration.to_commented_yaml(config, section)
    print("".join(line for line in text.splitlines(True) if not (bare and line.lstrip().startswith("#"))), end="")


def config_validate(
    files: Annotated[list[str], Argument(help="YAML files or presets.")], overrides: Overrides = None
) -> None:
    """Check configurations; a mistake is one line with file, key and the nearest known key."""
    for name in files:
        load(name, overrides)
        print(f"{name}: ok")


def config_presets() -> None:
    """List the presets that come with vthink."""
    presets = configuration.presets()
    width = max(map(len, presets))
    for name, description in presets.items():
        print(f"{name:<{width}}  {description}")
