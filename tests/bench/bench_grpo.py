"""GRPO's cost on video against the plain sighted way, on the same weights and the same batch, in turns.

The plain way is what one gets by giving stock transformers and TRL the pixels they need: the prompt, its vision tokens
and its pixels once for each of G completions, in ``generate`` and in every log-probability forward (sdpa, logits only
where they are needed). Ours processes each prompt once per group. `make bench` runs this; the figures are in
tests/bench/README.md. Models have random weights: speed does not depend on them.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from recording import OUTPUT, Measurement, interleave, peak_mib, record
from vthink.components.common.compat.torch import declare_torchvision_operators

declare_torchvision_operators()  # before transformers is imported
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.generation import Sampling, sample
from vthink.components.common.model.load import PatchEmbedding, tokens_per_second
from vthink.components.common.model.prompt import EncodedPrompt
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.clip import Clip
from vthink.components.common.video.config import VideoConfig
from vthink.components.grpo.shared_prefix import AttentionForm, install, log_probs, pack

GRIDS = {
    256: (4, 7, 8),
    1024: (8, 11, 11),
    2048: (8, 15, 16),
    4096: (16, 15, 16),
    8192: (32, 15, 16),
    16384: (64, 15, 16),
}
"""Prompt length → vision tokens along time, height and width (a frame of 420×448 pixels has 15×16)."""
BETA = 0.04


@dataclass(frozen=True)
class Case:
    """One setting."""

    prompt: int
    """P: tokens of the prompt."""
    group: int = 8
    """G: completions."""
    completion: int = 64
    """C: tokens of each."""
    hidden: int = 64
    layers: int = 2
    family: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"

    @property
    def name(self) -> str:
        """For the record."""
        return f"P{self.prompt}-G{self.group}-C{self.completion}/{self.family}-{self.hidden}x{self.layers}"

    @property
    def token_bound(self) -> float:
        """How much fewer tokens the language model sees: G(P+C) / (P+GC)."""
        return self.group * (self.prompt + self.completion) / (self.prompt + self.group * self.completion)


@dataclass
class Work:
    """A model, a prompt and its completions."""

    model: Any
    encoder: ChatEncoder
    prompt: EncodedPrompt
    shuffled: EncodedPrompt
    completions: list[list[int]]
    weights: torch.Tensor
    """Stand-in for advantages, a number per token."""


def build(case: Case, threads: int) -> Work:
    """The case's model (random weights, vision depth 2), ready for both ways."""
    from trl.trainer.utils import add_fused_lm_head

    torch.set_num_threads(threads)
    multiple = 28 if case.family == "qwen2_5_vl" else 32
    video = VideoConfig(size_multiple=multiple)
    tiny = TinyModelConfig(family=case.family, hidden_size=case.hidden, num_layers=case.layers)
    model, processor = build_tiny(tiny, video, 0)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    install(model)
    encoder = ChatEncoder(processor, "compact/1", video, tokens_per_second(model))
    t, h, w = GRIDS[case.prompt]
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (2 * t, h * multiple, w * multiple, 3), dtype=np.uint8)
    clip = Clip(frames, np.arange(2 * t) / 2, float(t), "video")
    short = encoder.encode("Which?", ["a", "b"], "multiple_choice", clip)
    missing = case.prompt - len(short)
    prompt = encoder.encode("Which?" + " left" * max(missing, 0), ["a", "b"], "multiple_choice", clip)
    shuffled = encoder.with_clip(prompt, clip.permuted(generator.permutation(2 * t).tolist()))
    tokens = generator.integers(64, len(processor.tokenizer), (case.group, case.completion))
    allowed = int(processor.tokenizer.convert_tokens_to_ids("left"))
    tokens[np.isin(tokens, [*encoder.vision_token_ids, encoder.eos_token_id])] = allowed
    weights = torch.randn(case.group * case.completion, generator=torch.Generator().manual_seed(0))
    return Work(model.train(), encoder, prompt, shuffled, tokens.tolist(), weights)


def use(model: Any, patch_embedding: type[torch.nn.Conv3d]) -> None:
    """The same weights in the stock model and in ours differ in how patches are embedded."""
    model.model.visual.patch_embed.proj.__class__ = patch_embedding


def plain_log_probs(work: Work, model: Any) -> torch.Tensor:
    """(ΣC,) with a copy of the prompt and its pixels per completion."""
    use(model, torch.nn.Conv3d)
    count = len(work.completions)
    batch = work.encoder.collate([work.prompt] * count, work.completions)
    keep = len(work.completions[0])
    logits = model(**batch, logits_to_keep=keep + 1, use_cache=False).logits[:, :-1]
    targets = batch["input_ids"][:, -keep:, None]
    return torch.log_softmax(logits.float(), -1).gather(-1, targets)[..., 0].flatten()


def own_log_probs(work: Work, model: Any, form: AttentionForm = "two_call") -> torch.Tensor:
    """(ΣC,) in one pass."""
    use(model, PatchEmbedding)
    return log_probs(model, pack(work.encoder, [work.prompt], [work.completions]), form)[0]


def forward_backward(work: Work, way: Callable[[Work, Any], torch.Tensor]) -> None:
    """Log-probabilities and the gradients of a weighted sum of them."""
    work.model.zero_grad(set_to_none=True)
    (way(work, work.model) * work.weights).sum().backward()


@torch.no_grad()
def plain_rollout(work: Work, prompt: EncodedPrompt, count: int, length: int) -> list[list[int]]:
    """transformers' ``generate`` on ``count`` copies of the prompt and its pixels."""
    use(work.model, torch.nn.Conv3d)
    work.model.eval()
    batch = work.encoder.collate([prompt] * count)
    del batch["position_ids"]  # generate makes its own
    types = (batch["input_ids"] == work.encoder.video_token_id).long() * 2
    tokens = work.model.generate(
        **batch,
        mm_token_type_ids=types,
        second_per_grid_ts=torch.full((count,), prompt.second_per_grid_s),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=True,
        suppress_tokens=work.encoder.vision_token_ids,
    )
    work.model.train()
    return tokens[:, batch["input_ids"].shape[1] :].tolist()


def own_rollout(work: Work, prompt: EncodedPrompt, count: int, length: int) -> list[list[int]]:
    """Our engine: prefill once, branch."""
    use(work.model, PatchEmbedding)
    work.encoder.eos_token_id = -1  # so that every completion has the full length, as in the plain way
    sampling = Sampling(max_new_tokens=length, temperature=1.0)
    return [completion.token_ids for completion in sample(work.model, work.encoder, [prompt], sampling, n=count)[0]]


def optimiser_step(work: Work, reference: Work, optimiser: Any, way: str, shuffled: int) -> None:
    """A (T-)GRPO step without its rewards: rollouts, reference, policy forward and backward, update."""
    length, count = len(work.completions[0]), len(work.completions)
    rollout, forward = (plain_rollout, plain_log_probs) if way == "plain" else (own_rollout, own_log_probs)
    work.completions = rollout(work, work.prompt, count, length)
    if shuffled:
        rollout(work, work.shuffled, shuffled, length)
    with torch.no_grad():
        expected = forward(replace(work), reference.model)
    optimiser.zero_grad(set_to_none=True)
    found = forward(work, work.model)
    kl = torch.exp(expected - found) - (expected - found) - 1
    (torch.exp(found - found.detach()) * work.weights - BETA * kl).mean().neg().backward()
    optimiser.step()


def vision_share(work: Work, way: Callable[[Work, Any], torch.Tensor], rounds: int) -> float:
    """Part of a forward pass that goes into the vision tower."""
    with torch.no_grad():
        way(work, work.model)  # from here on the tower is that of this way
        media = work.encoder.media([work.prompt] * (len(work.completions) if way is plain_log_probs else 1))
        pixels, grid = media["pixel_values_videos"], media["video_grid_thw"]
        tower, whole = interleave(
            lambda: work.model.model.visual(pixels, grid_thw=grid), lambda: way(work, work.model), rounds
        )
    return tower / whole


# -- memory: each in a process of its own ------------------------------------------------------------------------------


def _prepare(case: Case, threads: int, way: str) -> Callable[[], None]:
    work = build(case, threads)
    return lambda: forward_backward(work, {"plain": plain_log_probs, "own": own_log_probs}[way])


def memory(case: Case, threads: int, way: str) -> float:
    """Peak MiB of a forward and backward pass, above what model and batch take."""
    return peak_mib(_prepare, case, threads, way)


# -- what is measured --------------------------------------------------------------------------------------------------


def measure_log_probs(case: Case, threads: int, rounds: int, wanted: float | None, with_memory: bool) -> Measurement:
    """Forward and backward."""
    work = build(case, threads)
    difference = float((plain_log_probs(work, work.model) - own_log_probs(work, work.model)).abs().max().detach())
    plain, own = interleave(
        lambda: forward_backward(work, plain_log_probs), lambda: forward_backward(work, own_log_probs), rounds
    )
    return Measurement(
        name=f"grpo/log_probs/{case.name}",
        plain_seconds=plain,
        own_seconds=own,
        plain_peak_mib=memory(case, threads, "plain") if with_memory else None,
        own_peak_mib=memory(case, threads, "own") if with_memory else None,
        wanted_ratio=wanted,
        setting=setting(case, threads, rounds),
        extra={
            "token_bound": case.token_bound,
            "vision_share_plain": vision_share(work, plain_log_probs, rounds),
            "vision_share_own": vision_share(work, own_log_probs, rounds),
            "max_difference": difference,
        },
    )


def measure_rollouts(case: Case, threads: int, rounds: int, wanted: float | None) -> Measurement:
    """G sampled completions of one prompt."""
    work = build(case, threads)
    plain, own = interleave(
        lambda: plain_rollout(work, work.prompt, case.group, case.completion),
        lambda: own_rollout(work, work.prompt, case.group, case.completion),
        rounds,
    )
    return Measurement(
        name=f"grpo/rollouts/{case.name}",
        plain_seconds=plain,
        own_seconds=own,
        wanted_ratio=wanted,
        setting=setting(case, threads, rounds),
    )


def measure_step(case: Case, threads: int, rounds: int) -> list[Measurement]:
    """The whole optimiser step, with and without the shuffled rollouts."""
    work, reference = build(case, threads), build(case, threads)
    optimiser = torch.optim.AdamW(work.model.parameters(), lr=1e-6)
    half = case.group // 2
    plain, own = interleave(
        lambda: optimiser_step(work, reference, optimiser, "plain", half),
        lambda: optimiser_step(work, reference, optimiser, "own", half),
        rounds,
    )
    without, _ = interleave(
        lambda: optimiser_step(work, reference, optimiser, "plain", 0),
        lambda: optimiser_step(work, reference, optimiser, "own", half),
        rounds,
    )
    common = {"setting": setting(case, threads, rounds) | {"beta": BETA, "shuffled": half}}
    return [
        Measurement(
            name=f"grpo/t_grpo_step/{case.name}", plain_seconds=plain, own_seconds=own, wanted_ratio=4.0, **common
        ),
        Measurement(
            name=f"grpo/t_grpo_step_against_plain_grpo_without_shuffles/{case.name}",
            plain_seconds=without,
            own_seconds=_,
            wanted_ratio=2.0,
            **common,
        ),
    ]


def setting(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """For the record."""
    about = {"P": case.prompt, "G": case.group, "C": case.completion, "hidden": case.hidden, "layers": case.layers}
    shape = {"family": case.family, "vision_depth": 2, "dtype": "float32", "device": "cpu"}
    return about | shape | {"threads": threads, "rounds": rounds, "best_of": "rounds", "torch": torch.__version__}


CASES = [
    (Case(256), 5.0),
    (Case(1024), 7.0),
    (Case(4096), 7.0),
    (Case(1024, hidden=256, layers=4), 7.0),
    (Case(1024, family="qwen3_vl"), 7.0),
]
GROWTH_P = [Case(p) for p in (256, 1024, 2048, 4096, 8192, 16384)]
GROWTH_G = [Case(1024, group=g) for g in (2, 4, 8, 16, 32)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["log_probs", "rollouts", "step", "growth"], nargs="*", help="default: all")
    parser.add_argument("--largest", type=int, default=4096, help="longest prompt of the growth table (up to 16384)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    only = options.only or ["log_probs", "rollouts", "step", "growth"]
    common = (options.threads, options.rounds)
    if "log_probs" in only:
        for case, wanted in CASES:
            record([measure_log_probs(case, *common, wanted, with_memory=True)], options.output)
            gc.collect()
    if "rollouts" in only:
        for prompt, wanted in ((256, None), (1024, None), (4096, 4.5)):
            record([measure_rollouts(Case(prompt), *common, wanted)], options.output)
    if "step" in only:
        record(measure_step(Case(2048, completion=128), *common), options.output)
    if "growth" in only:
        for case in [*[c for c in GROWTH_P if c.prompt <= options.largest], *GROWTH_G]:
            if any(case == other for other, _ in CASES):
                continue
            record([measure_log_probs(case, options.threads, 2, None, with_memory=True)], options.output)


if __name__ == "__main__":
    main()
