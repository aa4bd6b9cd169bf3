"""GRPO that sees the video: rollouts, advantages and loss are here; the rest of the loop is TRL's GRPOTrainer.

A generation step (`VideoGRPOTrainer.generate_batch`) completes each prompt G times, rewards the completions, turns
rewards into advantages within each group, and computes the log-probabilities that stay fixed (old policy, reference).
An update (`VideoGRPOTrainer.compute_loss`) computes the policy's log-probabilities and `losses.policy_loss`. Each row
carries its encoded prompt, pixels included, from the rollout into every forward pass.

T-GRPO (Video-R1, arXiv 2503.21776 §3.1): the shuffled rollouts only decide a bonus (`rewards.built_in.temporal_bonus`);
they never enter the loss. Sampler, reference model, fused head and DeepSpeed stay TRL's.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from ..common.compat.trl import no_reward
from ..common.errors import UserError
from ..common.model.chat import ChatEncoder
from ..common.rows.prepared import Split
from ..common.training.trainer import VideoTrainer
from ..common.training.validation import Validation
from .clock import Clock
from .config import GRPOConfig
from .engine import RolloutEngine, TrainingModelEngine
from .log_probs import SightedLogProbs
from .losses import TrainingBatch, group_advantages, loss_denominator, policy_loss
from .metrics import rollout_metrics
from .prefetch import Prefetcher
from .rollouts import RolloutGenerator, Rollouts
from .vllm.engine import VLLMEngine
from .vllm.importance import importance_weights, sampler_log_probs


class VideoGRPOTrainer(VideoTrainer, GRPOTrainer):
    """GRPO on rows of a `Split`."""

    _buffered_inputs: list[TrainingBatch] | None
    _step: int
    control: Any

    def __init__(
        self,
        *args: Any,
        settings: GRPOConfig,
        encoder: ChatEncoder,
        split: Split,
        validation: Validation,
        on_rollouts: Callable[[int, Rollouts], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Beyond TRL's arguments.

        Args:
            settings: our configuration.
            encoder: of the policy.
            split: training rows; those of ``train_dataset`` are used.
            validation: selects the checkpoint.
            on_rollouts: called on rank 0 with (step, rollouts) every ``settings.rollout_table_every_steps`` steps.
        """
        super().__init__(*args, reward_funcs=no_reward, **kwargs)
        self.settings, self.encoder, self.validation = settings, encoder, validation
        self.on_rollouts = on_rollouts
        self.prefetcher = Prefetcher(split, settings.prefetch_workers, settings.data_timeout_s)
        # The loader fetches one batch ahead: its collator sees the rows before they are needed.
        self.data_collator = self.prefetcher.announce_batch
        self.clock = Clock()
        self.add_callback(_CloseStep(self))
        engine: RolloutEngine = TrainingModelEngine(self, encoder, settings.prompts_per_step)
        if settings.vllm is not None:
            samples = [split.samples[row] for row in self.train_dataset["row"]]
            engine = VLLMEngine.start(settings, self.model, self.accelerator, encoder, samples, self.args.bf16)
        rows = self.train_dataset["row"]
        self.generator = RolloutGenerator(settings, encoder, engine, self.prefetcher, self.clock, rows)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        self.log_probs = SightedLogProbs(settings, encoder, self.accelerator, models)
        self._steps_without_signal = 0

    # -- a generation step: rows → completions → rewards → advantages -------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> TrainingBatch:
        """Generate every ``steps_per_generation`` micro-batches; groups stay together and in order."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self.generate_batch(generation_batch).split(self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def generate_batch(self, examples: list[dict[str, Any]]) -> TrainingBatch:
        """From rows to what the loss needs.

        Args:
            examples: this rank's rows, each prompt's G copies side by side.
        """
        config, group_size = self.settings, self.settings.num_generations
        rows = [example["row"] for example in examples][::group_size]
        if [example["row"] for example in examples] != [row for row in rows for _ in range(group_size)]:
            raise RuntimeError("a group of completions is spread over processes; the batch must be a multiple of G")
        rollouts = self.generator.roll_out(rows, self.state.global_step)
        rollouts.advantages = group_advantages(self._rewards(rollouts), config.scale_by_std)

        device = self.accelerator.device
        prompts = [prompt for prompt in rollouts.prompts for _ in range(group_size)]
        completions = [completion for group in rollouts.completions for completion in group]
        lengths = torch.tensor([len(completion.token_ids) for completion in completions], device=device)
        ids = torch.full((len(completions), int(lengths.max())), self.encoder.pad_token_id, device=device)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        ids[mask.bool()] = torch.tensor([token for c in completions for token in c.token_ids], device=device)
        loss_mask = mask.clone()
        if config.mask_truncated:
            loss_mask[[i for i, completion in enumerate(completions) if completion.finish_reason == "length"]] = 0
        if config.dynamic_sampling:
            loss_mask.view(len(rows), group_size, -1)[rollouts.without_signal] = 0

        old_log_probs = ref_log_probs = weights = None
        micro_batch = self.args.per_device_train_batch_size
        # One update per rollout needs no old policy: its log-probabilities are the policy's own, detached.
        updates_apart = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations)
        if updates_apart or not self.generator.engine.is_policy:
            old_log_probs = self.log_probs.frozen(self.model, prompts, ids, mask, micro_batch)
        if old_log_probs is not None and not self.generator.engine.is_policy:
            cap = config.vllm.importance_cap if config.vllm is not None else 1.0
            importance = importance_weights(old_log_probs, sampler_log_probs(completions, ids), mask, cap)
            weights = importance.weights
            self._log({"grpo/sampler_gap": importance.mean_gap, "grpo/sampler_truncated": importance.truncated})
        if config.kl_coefficient:
            # With LoRA the reference is the policy without its adapters.
            reference, policy = self.ref_model, self.accelerator.unwrap_model(self.model)
            with policy.disable_adapter() if reference is None else nullcontext():
                model = self.model if reference is None else reference
                ref_log_probs = self.log_probs.frozen(model, prompts, ids, mask, micro_batch)
        self.clock.lap("log_probs")
        self._record(rollouts)
        return TrainingBatch(
            prompts=prompts,
            completion_ids=ids,
            completion_mask=mask,
            loss_mask=loss_mask,
            advantages=rollouts.advantages.reshape(-1).to(device),
            num_loss_tokens=self.accelerator.gather(loss_mask.sum()).sum(),
            old_log_probs=old_log_probs,
            ref_log_probs=ref_log_probs,
            importance_weights=weights,
        )

    def _rewards(self, rollouts: Rollouts) -> torch.Tensor:
        """(P, G) total rewards; in the control experiment each goes to another completion of its group."""
        if not self.settings.permute_rewards:
            return rollouts.totals
        key = f"permute/{self.settings.seed}/{self.state.global_step}"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rollouts.totals])

    def _record(self, rollouts: Rollouts) -> None:
        """Keep this step's figures for the next log; stop when there is nothing to learn from."""
        step = self.state.global_step
        metrics = rollout_metrics(rollouts, self.settings.reward_config.names, self.accelerator)
        self._log(metrics)
        self.clock.tokens += sum(map(len, rollouts.prompts))
        self.clock.tokens += sum(len(completion.token_ids) for group in rollouts.completions for completion in group)
        self._steps_without_signal = self._steps_without_signal + 1 if metrics["grpo/zero_std_groups"] == 1 else 0
        if self._steps_without_signal >= self.settings.max_steps_without_signal:
            raise UserError(
                f"in {self._steps_without_signal} steps every completion of every prompt earned the same: nothing can "
                "be learned. Look at the rollout table in MLflow; common causes are questions that are too hard or too "
                "easy, a format the model does not know yet (more SFT), and a temperature that is too low."
            )
        shown = step % self.settings.rollout_table_every_steps == 0
        if self.on_rollouts is not None and self.accelerator.is_main_process and shown:
            self.on_rollouts(step, rollouts)

    def _log(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # -- an update ----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's, timed: what is not the forward pass or the rollouts is the backward pass."""
        self.clock.lap("wait")
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.clock.lap("backward")
        return loss

    def compute_loss(
        self, model: Any, inputs: TrainingBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of a micro-batch, in as many passes as the token budget asks for; their gradients add up."""
        self.clock.lap("other")
        denominator = loss_denominator(
            self.settings,
            inputs,
            self.current_gradient_accumulation_steps,
            self.args.steps_per_generation,
            self.accelerator.num_processes,
        )
        total = torch.zeros((), device=self.accelerator.device)
        sums = torch.zeros(5, device=self.accelerator.device)  # tokens, KL, entropy, clipped low and high
        passes = self.log_probs.passes(inputs.prompts, inputs.completion_mask.sum(1))
        for number, (rows, counts) in enumerate(passes):
            part = inputs.rows(rows)
            log_probs, entropies = self.log_probs(model, part.prompts, part.completion_ids, part.completion_mask)
            result = policy_loss(self.settings, log_probs, part, denominator)
            loss = result.loss * counts
            if counts:
                entropy = (
                    (entropies.detach() * part.loss_mask).sum() if entropies is not None else torch.zeros_like(total)
                )
                figures = (result.num_tokens, result.kl, entropy, result.clipped_low, result.clipped_high)
                sums += torch.stack([figure.float() for figure in figures])
            self.clock.lap("forward")
            if number < len(passes) - 1:
                self._backward_early(model, loss)
                loss = loss.detach()
                self.clock.lap("backward")
            total = total + loss
        self._check(total, sums)
        return total

    def _backward_early(self, model: Any, loss: torch.Tensor) -> None:
        """Backward of a pass that is not the last of its micro-batch: gradients add up, nothing else happens yet."""
        if self.is_deepspeed_enabled:
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            engine.set_gradient_accumulation_boundary(is_boundary=False)
            engine.backward(loss, scale_wrt_gas=False)
            return
        with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
            self.accelerator.backward(loss)

    def _check(self, loss: torch.Tensor, sums: torch.Tensor) -> None:
        """Keep the update's figures, and stop before a broken loss reaches the weights.

        Args:
            sums: tokens, KL, entropy, tokens clipped at the low and at the high end.

        Raises:
            UserError: the loss is not a number, or the policy has come apart from where it started.
        """
        if not bool(torch.isfinite(loss)):
            raise UserError(f"step {self.state.global_step}: the loss is {float(loss.detach())}")
        sums = self.accelerator.reduce(sums, reduction="sum")
        kl, entropy, low, high = (sums[1:] / sums[0].clamp(min=1)).tolist()
        metrics = {"entropy": entropy, "clip_ratio/low_mean": low, "clip_ratio/high_mean": high}
        self._log(
            metrics | {"clip_ratio/region_mean": low + high} | ({"kl": kl} if self.settings.kl_coefficient else {})
        )
        if not kl <= self.settings.max_kl:
            raise UserError(
                f"step {self.state.global_step}: KL to the start of this stage is {kl:.3g} per token, above "
                f"grpo.max_kl = {self.settings.max_kl:g}; lower grpo.learning_rate or raise grpo.kl_coefficient"
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not np.isfinite(float(norm)):
            raise UserError(f"step {self.state.global_step}: the norm of the gradients is {float(norm)}")
        return norm


class _CloseStep(TrainerCallback):
    """Files where a step's time went."""

    def __init__(self, trainer: VideoGRPOTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After the update, before the next batch is fetched."""
        self.trainer.clock.lap("update")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Close the step's account."""
        self.trainer._log(self.trainer.clock.close_step(self.trainer.accelerator.num_processes))
