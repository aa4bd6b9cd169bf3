"""``vthink plan``: what a run will need, before it is started."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from .settings import Overrides, Preset, load


def plan(
    preset: Preset = "video_r1_7b",
    overrides: Overrides = None,
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="a100-40gb, a100-80gb, h100-80gb, h200-141gb, l40s-48gb.")
    ] = ("a100-80gb"),
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; default: launch.processes × launch.nodes.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Training rows.")] = 10_000,
    footage: Annotated[
        str, typer.Option("--video", metavar="WxH:SECONDS", help="A typical video as it comes.")
    ] = "1280x720:30",
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU for one hour, in your currency.")] = None,
) -> None:
    """Say what a run needs: visual tokens, memory per GPU by ZeRO stage, storage, GPU-hours and cost, and what fits.

    Nothing is loaded and no GPU is needed. Tokens and parameters are exact; hours are an estimate (pipelines/plan/
    states what it rests on), without evaluation and validation.
    """
    from rich.console import Console
    from rich.table import Table

    from ..plan import accelerators, shapes, tokens
    from ..plan import memory as memory_module
    from ..plan import stage as stage_module

    config = load(preset, overrides)
    accelerator = accelerators.ACCELERATORS.get(gpu)
    if accelerator is None:
        raise typer.BadParameter(f"no '{gpu}'; known: {', '.join(accelerators.ACCELERATORS)}", param_hint="--gpu")
    size = re.fullmatch(r"(\d+)x(\d+):(\d+(?:\.\d+)?)", footage)
    if size is None:
        raise typer.BadParameter(f"'{footage}' is not like 1280x720:30", param_hint="--video")
    video = tokens.Footage(int(size[1]), int(size[2]), float(size[3]))
    count = gpus or config.launch.processes * config.launch.nodes
    shape = shapes.shape_of(config)
    sample = tokens.visual_tokens(video, config.video, shape)
    stored = stage_module.stored_bytes(config, shape, sample, rows)
    console = Console(highlight=False)
    console.print(
        f"model    {config.model.name}: {shape.parameters / 1e9:.3g} B parameters, {stored.model / 1e9:.3g} GB"
    )
    console.print(
        f"video    {video.width}×{video.height}, {video.seconds:g} s: {sample.frames} frames of {sample.width}×"
        f"{sample.height}, {sample.patches} patches, {sample.visual} visual tokens"
    )
    console.print(
        f"storage  data {stored.data / 1e9:.3g} GB for {rows} rows, a checkpoint {stored.checkpoint / 1e9:.3g} GB, "
        f"checkpoints kept {stored.checkpoints / 1e9:.3g} GB"
    )
    total_hours, total_gpu_hours, sound = 0.0, 0.0, True
    for stage in ("sft", "grpo"):
        if not getattr(config, stage).enabled:
            continue
        plans = stage_module.layouts(config, stage, shape, sample, accelerator, rows, count)
        best, own = stage_module.fastest(plans), plans[0]
        table = Table(
            title=f"{stage}: {own.steps} steps of {own.step_flops / 1e15:.3g} PFLOP on {count} × {gpu}",
            title_justify="left", title_style="bold", box=None, pad_edge=False,
        )  # fmt: skip
        for heading in (
            "deepspeed",
            "states",
            "reference",
            "activations",
            "logits",
            "rollouts",
            "GiB per GPU",
            "hours",
        ):
            table.add_column(heading, justify="left" if heading == "deepspeed" else "right", header_style="")
        for entry in plans:
            memory = entry.memory
            parts = (memory.states, memory.reference, memory.activations, memory.logits, memory.rollouts)
            fits = f"{memory.total / memory_module.GIB:.1f}" + ("" if entry.fits else f" > {accelerator.memory_gib}")
            marks = [word for word, is_so in (("yours", entry is own), ("fastest", entry is best)) if is_so]
            name = entry.zero + (f" ({', '.join(marks)})" if marks else "")
            cells = [f"{part / memory_module.GIB:.1f}" for part in parts]
            table.add_row(name, *cells, fits, f"{entry.hours:.1f}", style="" if entry.fits else "dim")
        console.print(table)
        if best is None:
            sound = False
            console.print("  none fits: more GPUs, a smaller model, lora, fewer frames, or a smaller video.max_pixels")
            if stage == "grpo" and config.grpo.vllm is not None and config.grpo.vllm.mode == "colocate":
                console.print("  vLLM needs room for a second copy of the weights: grpo.vllm.gpu_memory_utilization")
            continue
        chosen = own if own.fits else best
        total_hours, total_gpu_hours = total_hours + chosen.hours, total_gpu_hours + chosen.gpu_hours
        if not own.fits:
            console.print(f"  deepspeed={own.zero} does not fit: --set {stage}.deepspeed={best.zero}")
    if sound:
        cost = f", {total_gpu_hours * price:,.0f} at {price:g} per GPU-hour" if price is not None else ""
        console.print(f"training {total_hours:.1f} h, {total_gpu_hours:.0f} GPU-hours{cost}")
        if config.grpo.enabled and config.grpo.vllm is not None and config.grpo.vllm.mode == "server":
            console.print("  and as long in GRPO the GPUs of the vLLM servers, which are not counted here")
    raise typer.Exit(0 if sound else 1)
