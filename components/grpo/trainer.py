"""GRPO that sees the video: rollouts, advantages and loss are here; the rest of the loop is TRL's GRPOTrainer.

Each row carries its encoded prompt, pixels included, from the rollout into every forward pass. T-GRPO (Video-R1,
arXiv 2503.21776 §3.1): the shuffled rollouts only decide a bonus (`rewards.temporal_bonus`); they never enter the loss.
Sampler, reference model, fused head, vLLM's start and DeepSpeed stay TRL's.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from trl import GRPOTrainer

from ..common.compat.trl import no_reward
from ..common.errors import UserError
from ..common.model.chat import ChatEncoder
from ..common.rows.prepared import Split
from ..common.training.trainer import Validation, VideoTrainer
from .config import GRPOConfig
from .log_probs import SightedLogProbs
from .losses import TrainingBatch, group_advantages, loss_denominator, policy_loss
from .rollout_table import rollout_metrics
from .rollouts import Prefetcher, RolloutEngine, RolloutGenerator, Rollouts, TrainingModelEngine
from .vllm.engine import VLLMEngine
from .vllm.importance import importance_weights, sampler_log_probs


class Clock(TrainerCallback):
    """Seconds of a step, by what they went into. Where a GPU works on its own, they include the wait for it."""

    def __init__(self, trainer: VideoGRPOTrainer) -> None:
        self.trainer = trainer
        self.tokens = 0  # processed in this step on this rank, each prompt counted once per group
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Charge the time since the last call to ``name``."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After the update, before the next batch is fetched."""
        self.lap("update")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Log the step's account: ``time/<part>_s`` and ``time/tokens_per_s`` over all processes."""
        self.lap("other")
        total = sum(self._seconds.values())
        self.trainer.record({f"time/{name}_s": value for name, value in (self._seconds | {"step": total}).items()})
        if self.tokens:
            self.trainer.record({"time/tokens_per_s": self.tokens * self.trainer.accelerator.num_processes / total})
        self.tokens = 0
        self._seconds.clear()


class VideoGRPOTrainer(VideoTrainer, GRPOTrainer):
    """GRPO on rows of a `Split`."""

    _buffered_inputs: list[TrainingBatch] | None
    _step: int
    control: Any
    on_rollouts: Callable[[int, Rollouts], None] | None = None
    """Called on rank 0 with (step, rollouts) every ``settings.rollout_table_every_steps`` steps."""

    def __init__(
        self, settings: GRPOConfig, encoder: ChatEncoder, split: Split, validation: Validation, **keywords: Any
    ) -> None:
        """Args: ``split``: training rows, of which those of ``train_dataset`` are used; ``keywords``: TRL's."""
        super().__init__(reward_funcs=no_reward, **keywords)
        self.settings, self.encoder, self.validation = settings, encoder, validation
        self.prefetcher = Prefetcher(split, settings.prefetch_workers, settings.data_timeout_s)
        # The loader fetches one batch ahead: its collator sees the rows before they are needed.
        self.data_collator = self.prefetcher.announce_batch
        self.clock = Clock(self)
        self.add_callback(self.clock)
        engine: RolloutEngine = TrainingModelEngine(self, encoder, settings.prompts_per_step)
        if settings.vllm is not None:
            engine = VLLMEngine(self.vllm_generation, encoder)
        rows = self.train_dataset["row"]
        self.generator = RolloutGenerator(settings, encoder, engine, self.prefetcher, self.clock.lap, rows)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        self.log_probs = SightedLogProbs(settings, encoder, self.accelerator, models)
        self._steps_without_signal = 0

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> TrainingBatch:
        """Generate every ``steps_per_generation`` micro-batches; groups stay together and in order."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self.generate_batch(generation_batch).split(self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def generate_batch(self, examples: list[dict[str, Any]]) -> TrainingBatch:
        """From this rank's rows, each prompt's G copies side by side, to what the loss needs. Completes each prompt G
        times, rewards the completions, turns rewards into advantages within each group, and computes the
        log-probabilities that stay fixed (old policy, reference)."""
        config, group_size = self.settings, self.settings.num_generations
        rows = [example["row"] for example in examples][::group_size]
        if [example["row"] for example in examples] != [row for row in rows for _ in range(group_size)]:
            raise RuntimeError("a group of completions is spread over processes; the batch must be a multiple of G")
        rollouts = self.generator.roll_out(rows, self.state.global_step)
        rewards = rollouts.components.sum(-1)
        if config.permute_rewards:  # the control experiment: each goes to another completion of its group
            key = f"permute/{config.seed}/{self.state.global_step}"
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            rewards = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rewards])
        rollouts.advantages = group_advantages(rewards, config.scale_by_std)
        device = self.accelerator.device
        completions = [completion for group in rollouts.completions for completion in group]
        tokens = [torch.tensor(completion.token_ids, dtype=torch.long, device=device) for completion in completions]
        ids = pad_sequence(tokens, batch_first=True, padding_value=self.encoder.pad_token_id)
        mask = pad_sequence([torch.ones_like(part) for part in tokens], batch_first=True)
        loss_mask = mask.clone()
        if config.mask_truncated:
            loss_mask[[i for i, completion in enumerate(completions) if completion.finish_reason == "length"]] = 0
        if config.dynamic_sampling:
            loss_mask.view(len(rows), group_size, -1)[rollouts.without_signal] = 0
        batch = TrainingBatch(
            prompts=[prompt for prompt in rollouts.prompts for _ in range(group_size)],
            completion_ids=ids,
            completion_mask=mask,
            loss_mask=loss_mask,
            advantages=rollouts.advantages.reshape(-1).to(device),
            num_loss_tokens=self.accelerator.gather(loss_mask.sum()).sum(),
        )
        micro_batch = self.args.per_device_train_batch_size
        # One update per rollout needs no old policy: its log-probabilities are the policy's own, detached.
        updates_apart = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations)
        if updates_apart or not self.generator.engine.is_policy:
            batch = replace(batch, old_log_probs=self.log_probs.frozen(self.model, batch, micro_batch))
        if batch.old_log_probs is not None and not self.generator.engine.is_policy:
            cap = config.vllm.importance_cap if config.vllm is not None else 1.0
            importance = importance_weights(batch.old_log_probs, sampler_log_probs(completions, ids), mask, cap)
            batch = replace(batch, importance_weights=importance.weights)
            self.record({"grpo/sampler_gap": importance.mean_gap, "grpo/sampler_truncated": importance.truncated})
        if config.kl_coefficient:
            # With LoRA the reference is the policy without its adapters.
            reference, policy = self.ref_model, self.accelerator.unwrap_model(self.model)
            with policy.disable_adapter() if reference is None else nullcontext():
                model = self.model if reference is None else reference
                batch = replace(batch, ref_log_probs=self.log_probs.frozen(model, batch, micro_batch))
        self.clock.lap("log_probs")
        self.clock.tokens += sum(map(len, rollouts.prompts)) + sum(map(len, tokens))
        self._check_rollouts(rollouts)
        return batch

    def record(self, metrics: dict[str, float]) -> None:
        """Keep figures for the next log."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _check_rollouts(self, rollouts: Rollouts) -> None:
        """Record this step's figures and rollouts; stop when there is nothing to learn from."""
        metrics = rollout_metrics(rollouts, self.settings.reward_config.names, self.accelerator)
        self.record(metrics)
        self._steps_without_signal = self._steps_without_signal + 1 if metrics["grpo/zero_std_groups"] == 1 else 0
        if self._steps_without_signal >= self.settings.max_steps_without_signal:
            raise UserError(
                f"in {self._steps_without_signal} steps every completion of every prompt earned the same: nothing can "
                "be learned. Look at the rollout table in MLflow; common causes are questions that are too hard or too "
                "easy, a format the model does not know yet (more SFT), and a temperature that is too low."
            )
        shown = self.state.global_step % self.settings.rollout_table_every_steps == 0
        if self.on_rollouts is not None and self.accelerator.is_main_process and shown:
            self.on_rollouts(self.state.global_step, rollouts)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's, timed: what is not the forward pass or the rollouts is the backward pass."""
        self.clock.lap("wait")
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.clock.lap("backward")
        return loss

    def compute_loss(
        self, model: Any, inputs: TrainingBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of a micro-batch, in as many passes as the token budget asks for; their gradients add up.

        Raises: `UserError`: it is not a number, or the policy has come apart from where it started."""
        self.clock.lap("other")
        micro_batches, steps = self.current_gradient_accumulation_steps, self.args.steps_per_generation
        denominator = loss_denominator(self.settings, inputs, micro_batches, steps, self.accelerator.num_processes)
        total = torch.zeros((), device=self.accelerator.device)
        sums = torch.zeros(5, device=self.accelerator.device)  # tokens, KL, clipped low and high, entropy
        passes = self.log_probs.passes(inputs)
        for number, (part, counts) in enumerate(passes):
            log_probs, entropies = self.log_probs(model, part)
            loss, figures = policy_loss(self.settings, log_probs, part, denominator)
            loss = loss * counts
            if counts:
                sums[:4] += figures
                sums[4] += 0.0 if entropies is None else (entropies.detach() * part.loss_mask).sum()
            self.clock.lap("forward")
            if number < len(passes) - 1:
                self._backward_early(model, loss)
                loss = loss.detach()
                self.clock.lap("backward")
            total = total + loss
        if not bool(torch.isfinite(total)):
            raise UserError(f"step {self.state.global_step}: the loss is {float(total.detach())}")
        sums = self.accelerator.reduce(sums, reduction="sum")
        kl, low, high, entropy = (sums[1:] / sums[0].clamp(min=1)).tolist()
        self.record({"entropy": entropy, "clip_ratio/low_mean": low, "clip_ratio/high_mean": high})
        self.record({"clip_ratio/region_mean": low + high} | ({"kl": kl} if self.settings.kl_coefficient else {}))
        if not kl <= self.settings.max_kl:
            raise UserError(
                f"step {self.state.global_step}: KL to the start of this stage is {kl:.3g} per token, above "
                f"grpo.max_kl = {self.settings.max_kl:g}; lower grpo.learning_rate or raise grpo.kl_coefficient"
            )
        return total

    def _backward_early(self, model: Any, loss: torch.Tensor) -> None:
        """Backward of a pass that is not the last of its micro-batch: gradients add up, nothing else happens yet."""
        if self.is_deepspeed_enabled:
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            engine.set_gradient_accumulation_boundary(is_boundary=False)
            engine.backward(loss, scale_wrt_gas=False)
        else:
            with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
                self.accelerator.backward(loss)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not np.isfinite(float(norm)):
            raise UserError(f"step {self.state.global_step}: the norm of the gradients is {float(norm)}")
        return norm
