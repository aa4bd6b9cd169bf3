"""GRPO that sees the video: TRL's GRPOTrainer with sighted rollouts, sighted log-probabilities and T-GRPO.

TRL 1.16 accepts prompts with videos and then computes every log-probability without pixels. Here each row carries its
encoded prompt, pixels included, from the rollout into the forward pass of the policy, the old policy and the
reference; a forward pass whose placeholders have no pixels is refused. A group's prompt is processed once, in rollouts
(`common.generation`) and in log-probabilities (`shared_prefix`). The loss, the KL term, the reference model, the
sampler and DeepSpeed stay TRL's.

T-GRPO: Video-R1 (arXiv 2503.21776) §3.1. The shuffled rollouts only decide a bonus; they never enter the loss.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from ..common.errors import UserError
from ..common.model.chat import ChatEncoder
from ..common.model.generation import Completion, Sampling, sample
from ..common.model.prompt import BlindInputError, EncodedPrompt
from ..common.rows.prepared import Split
from ..common.training.resume import WholeCheckpoints
from ..common.training.validation import validate
from ..common.video.clip import Clip
from .clock import Clock
from .config import GRPOConfig
from .prefetch import Prefetcher
from .rewards import Group, group_advantages, group_rewards, load_rewards
from .rollouts import Rollouts, frame_order
from .shared_prefix.log_probs import install, log_probs
from .shared_prefix.pack import pack
from .vllm.importance import importance_weights
from .vllm.rollouts import VLLMRollouts


class DivergedError(RuntimeError):
    """Training goes on to no good: the policy has come apart, or there is nothing left to learn from."""


class _StepClock(TrainerCallback):
    """Times what lies between the trainer's own methods."""

    def __init__(self, trainer: VideoGRPOTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After the update, before the next batch is fetched."""
        self.trainer.clock.lap("update")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Close the step's account."""
        self.trainer.close_step()


class VideoGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    """GRPO on rows of a `Split`. TRL insists on `reward_funcs`; the rewards come from ``settings`` all the same."""

    def __init__(
        self,
        *args: Any,
        settings: GRPOConfig,
        encoder: ChatEncoder,
        split: Split,
        held_out: Split,
        asked: Sequence[int],
        on_rollouts: Callable[[int, Rollouts], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Beyond TRL's arguments.

        Args:
            settings: our configuration.
            encoder: of the policy.
            split: training rows.
            held_out, asked: validation rows and which of them to ask.
            on_rollouts: called on rank 0 with (step, rollouts) every ``settings.rollout_table_every_steps`` steps.
        """
        super().__init__(*args, **kwargs)
        self.settings, self.encoder, self.split = settings, encoder, split
        self.held_out, self.asked, self.on_rollouts = held_out, list(asked), on_rollouts
        self.extra_rewards = load_rewards(settings.reward_config)
        self.prefetcher = Prefetcher(split, settings.prefetch_workers, settings.data_timeout_s)
        # The loader fetches one batch ahead: its collator sees the rows before they are needed.
        self.data_collator = self._announce
        self.clock = Clock()
        self.add_callback(_StepClock(self))
        self.vllm = VLLMRollouts(self.vllm_generation, encoder) if settings.vllm is not None else None
        self._rows: list[EncodedPrompt] | None = None
        self._tokens = 0
        self._steps_without_signal = 0
        if settings.shared_prefix != "off":
            install(self.accelerator.unwrap_model(self.model))
            if self.ref_model is not None:
                install(self.accelerator.unwrap_model(self.ref_model))

    def _announce(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.prefetcher.announce([row["row"] for row in rows])
        return rows

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _roll_out(self, rows: Sequence[int]) -> Rollouts:
        """Rewarded rollouts for this rank's rows; groups without signal are tried again if so configured."""
        # Under ZeRO-3 the weights are gathered for this block, so ranks need not make the same number of passes:
        # one may have pictures only, and no shuffled rollouts, or more groups to try again.
        with self._policy() as model:
            rollouts = self._complete(model, rows)
            self._score(rollouts)
            for attempt in range(self.settings.dynamic_sampling):
                positions = rollouts.without_signal
                if not positions:
                    break
                others = [self._substitute(rows[position], attempt) for position in positions]
                again = self._complete(model, others)
                self._score(again)
                empty = set(again.without_signal)
                for source, position in enumerate(positions):
                    if source not in empty:
                        rollouts.replace(position, again, source)
        self._set_advantages(rollouts)
        return rollouts

    def _policy(self) -> AbstractContextManager[Any]:
        """The policy, ready to sample from: the training model, or vLLM with its present weights."""
        if self.vllm is not None:
            return self.vllm.policy(self.state.global_step)
        model: AbstractContextManager[Any] = unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        )
        return model

    def _sample(
        self, model: Any, prompts: Sequence[EncodedPrompt], sampling: Sampling, n: int, keys: Sequence[int]
    ) -> Sequence[Sequence[Completion]]:
        if self.vllm is not None:
            return self.vllm.generate(prompts, sampling, n, keys)
        return sample(model, self.encoder, prompts, sampling, n, n * self.settings.prompts_per_step, keys)

    def _substitute(self, row: int, attempt: int) -> int:
        """Another training row, drawn by (seed, step, row, attempt) alone."""
        key = f"substitute/{self.settings.seed}/{self.state.global_step}/{row}/{attempt}"
        rows: list[int] = self.train_dataset["row"]
        return int(rows[zlib.crc32(key.encode()) % len(rows)])

    def _complete(self, model: Any, rows: Sequence[int]) -> Rollouts:
        """Complete each row's prompt G times on its frames in order and, for T-GRPO, some times on them shuffled."""
        step, config = self.state.global_step, self.settings
        self.clock.lap("other")
        items = self.prefetcher.take(rows)
        self.clock.lap("wait")
        prompts = [self.encoder.encode_sample(item) for item in items]
        temporal = config.reward_config.temporal
        clips: list[Clip | None] = [None] * len(items)
        if temporal is not None:
            for position, (row, item) in enumerate(zip(rows, items, strict=True)):
                if item.clip.kind == "video" and len(item.clip.frames) > 1:
                    order = frame_order(config.seed, step, row, len(item.clip.frames))
                    clips[position] = item.clip.permuted(order.tolist())
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        )
        keys = [zlib.crc32(f"{step}/{row}".encode()) for row in rows]
        completions = self._sample(model, prompts, sampling, config.num_generations, keys)
        shuffled: list[Sequence[Completion]] = [[] for _ in items]
        chosen = [position for position, clip in enumerate(clips) if clip is not None]
        if chosen and temporal is not None:
            count = max(1, int(config.num_generations * temporal.shuffled_fraction))
            others = [self.encoder.with_clip(prompts[i], clip) for i in chosen if (clip := clips[i]) is not None]
            answered = self._sample(model, others, sampling, count, [keys[i] ^ 1 for i in chosen])
            for position, group in zip(chosen, answered, strict=True):
                shuffled[position] = group
        self.clock.lap("rollout")
        return Rollouts(items, prompts, list(completions), clips, shuffled)

    def _score(self, rollouts: Rollouts) -> None:
        """Fill in the rewards."""
        rollouts.earned = [
            group_rewards(
                Group(
                    sample=item.sample,
                    texts=[completion.text for completion in group],
                    token_counts=[len(completion.token_ids) for completion in group],
                    shuffled_texts=[completion.text for completion in shuffled],
                ),
                self.settings.reward_config,
                self.encoder.template.answer_format,
                self.extra_rewards,
            )
            for item, group, shuffled in zip(rollouts.items, rollouts.completions, rollouts.shuffled, strict=True)
        ]
        self.clock.lap("reward")

    def _set_advantages(self, rollouts: Rollouts) -> None:
        """Fill in the advantages; statistics are per group."""
        totals = rollouts.rewards.sum(-1)
        if self.settings.permute_rewards:
            key = f"permute/{self.settings.seed}/{self.state.global_step}"
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            totals = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in totals])
        rollouts.advantages = group_advantages(totals, self.settings.scale_by_std)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's step from rows to training tensors, with the video carried along.

        Args:
            inputs: this rank's rows, each prompt's G copies side by side.

        Returns:
            Tensors with one row per completion; ``prompts`` holds each row's encoded prompt.
        """
        group = self.settings.num_generations
        rows = [example["row"] for example in inputs][::group]
        if [example["row"] for example in inputs] != [row for row in rows for _ in range(group)]:
            raise RuntimeError("a group of completions is spread over processes; the batch must be a multiple of G")
        rollouts = self._roll_out(rows)

        device = self.accelerator.device
        prompts = [prompt for prompt in rollouts.prompts for _ in range(group)]
        completions = [completion for row in rollouts.completions for completion in row]
        longest_prompt = max(len(prompt) for prompt in prompts)
        batch = self.encoder.collate(prompts, [completion.token_ids for completion in completions])
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        counted = mask[:, longest_prompt:].clone()
        if self.settings.mask_truncated:
            counted[[i for i, completion in enumerate(completions) if completion.finish_reason == "length"]] = 0
        if self.settings.dynamic_sampling:
            counted.view(len(rows), group, -1)[rollouts.without_signal] = 0
        output: dict[str, Any] = {
            "prompt_ids": ids[:, :longest_prompt],
            "prompt_mask": mask[:, :longest_prompt],
            "completion_ids": ids[:, longest_prompt:],
            "completion_mask": mask[:, longest_prompt:],
            "tool_mask": counted,  # TRL's name for a mask on what the loss counts
            "advantages": rollouts.advantages.reshape(-1).to(device),
            "num_items_in_batch": self.accelerator.gather(counted.sum()).sum(),
            "prompts": prompts,
        }
        self._rows = prompts
        with torch.no_grad():
            # One update per rollout needs no old policy: its log-probabilities are the policy's own, detached.
            again = self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0
            if again or self.vllm is not None:
                output["old_per_token_logps"] = self._log_probs(self.model, ids, mask, output["completion_ids"].size(1))
            if self.vllm is not None:
                output["importance_sampling_ratio"] = self._correction(output, completions)
            if self.beta != 0.0:
                output["ref_per_token_logps"] = self._reference_log_probs(ids, mask, output["completion_ids"].size(1))
        self._rows = None
        self.clock.lap("log_probs")
        self._record(rollouts)
        return output

    def _correction(self, output: dict[str, Any], completions: Sequence[Completion]) -> torch.Tensor:
        """(B, C) weights of the token losses, because vLLM's probabilities are not quite the trainer's."""
        sampler = torch.zeros_like(output["old_per_token_logps"])
        for row, completion in enumerate(completions):
            values = getattr(completion, "log_probs", None) or []
            sampler[row, : len(values)] = torch.tensor(values, device=sampler.device)
        cap = self.settings.vllm.importance_cap if self.settings.vllm is not None else 1.0
        corrected = importance_weights(output["old_per_token_logps"], sampler, output["completion_mask"], cap)
        self._metrics["train"]["grpo/sampler_gap"].append(corrected.mean_gap)
        self._metrics["train"]["grpo/sampler_truncated"].append(corrected.truncated)
        return corrected.weights

    def _record(self, rollouts: Rollouts) -> None:
        """Keep this step's figures for the next log, averaged over ranks; stop when there is nothing to learn from."""
        groups = rollouts.completions
        shuffled = [float(group.shuffled_accuracy.mean()) for group in rollouts.earned if len(group.shuffled_accuracy)]
        rewards = rollouts.rewards
        values = {
            f"grpo/reward/{name}": rewards[:, :, i].mean() for i, name in enumerate(self.settings.reward_config.names)
        }
        truncated = [float(c.finish_reason == "length") for group in groups for c in group]
        values |= {
            "grpo/reward/total": rewards.sum(-1).mean(),
            "grpo/accuracy_ordered": torch.stack([group.accuracy for group in rollouts.earned]).mean(),
            "grpo/completion_length": torch.tensor([float(len(c.token_ids)) for group in groups for c in group]).mean(),
            "grpo/truncated": torch.tensor(truncated).mean(),
            "grpo/zero_std_groups": torch.tensor(len(rollouts.without_signal) / len(groups)),
        }
        # A rank without a video in this step has no shuffled accuracy: NaN leaves it out of the mean.
        values["grpo/accuracy_shuffled"] = torch.tensor(shuffled).mean() if shuffled else torch.tensor(float("nan"))
        stacked = torch.stack([value.float() for value in values.values()]).to(self.accelerator.device)
        averages = self.accelerator.gather(stacked).view(-1, len(values)).nanmean(0)
        for name, value in zip(values, averages.tolist(), strict=True):
            self._metrics["train"][name].append(value)
        for name, value in self._by_kind(rollouts).items():
            self._metrics["train"][name].append(value)
        self._tokens += sum(
            len(prompt) + sum(len(c.token_ids) for c in group)
            for prompt, group in zip(rollouts.prompts, groups, strict=True)
        )
        signal = averages[list(values).index("grpo/zero_std_groups")] < 1
        self._steps_without_signal = 0 if signal else self._steps_without_signal + 1
        if self._steps_without_signal >= self.settings.max_steps_without_signal:
            raise DivergedError(
                f"in {self._steps_without_signal} steps every completion of every prompt earned the same: nothing can "
                "be learned. Look at the rollout table in MLflow; common causes are questions that are too hard or too "
                "easy, a format the model does not know yet (more SFT), and a temperature that is too low."
            )
        every = self.settings.rollout_table_every_steps
        if self.on_rollouts is not None and self.accelerator.is_main_process and self.state.global_step % every == 0:
            self.on_rollouts(self.state.global_step, rollouts)

    def _by_kind(self, rollouts: Rollouts) -> dict[str, float]:
        """Mean accuracy per problem type and per source, over all ranks."""
        sums: dict[str, list[float]] = {}
        for item, group in zip(rollouts.items, rollouts.earned, strict=True):
            row = item.sample
            for name in (f"type/{row.problem_type}", f"source/{row.source or 'unnamed'}"):
                total = sums.setdefault(f"grpo/accuracy/{name}", [0.0, 0.0])
                total[0] += float(group.accuracy.mean())
                total[1] += 1
        parts = [sums]
        if self.accelerator.num_processes > 1:
            parts = [{} for _ in range(self.accelerator.num_processes)]
            torch.distributed.all_gather_object(parts, sums)
        merged: dict[str, list[float]] = {}
        for part in parts:
            for name, (accuracy, count) in part.items():
                entry = merged.setdefault(name, [0.0, 0.0])
                entry[0] += accuracy
                entry[1] += count
        return {name: accuracy / count for name, (accuracy, count) in merged.items()}

    def close_step(self) -> None:
        """File where the step's time went, and how fast tokens were processed (each prompt counted once per group)."""
        self.clock.lap("other")
        seconds = dict(self.clock.seconds)
        self.clock.seconds.clear()
        total = sum(seconds.values())
        for name, value in (seconds | {"step": total}).items():
            self._metrics["train"][f"time/{name}_s"].append(value)
        if self._tokens:
            self._metrics["train"]["time/tokens_per_s"].append(self._tokens * self.accelerator.num_processes / total)
        self._tokens = 0

    # -- log-probabilities --------------------------------------------------------------------------------------------

    def _log_probs(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        """(B, keep) log-probabilities in slices of the training batch, as the loss computes them."""
        rows, size = self._rows, self.args.per_device_train_batch_size
        if rows is None:
            raise BlindInputError("log-probabilities were asked for without the prompts they belong to")
        parts = []
        for start in range(0, len(rows), size):
            for piece, counts in self._passes(rows[start : start + size], mask[start : start + size, -keep:].sum(1)):
                piece = slice(start + piece.start, start + piece.stop)
                self._rows = rows[piece]
                part, _, _ = self._get_per_token_logps_and_entropies(model, ids[piece], mask[piece], keep)
                if counts:
                    parts.append(part)
        self._rows = rows
        return torch.cat(parts)

    def _passes(self, rows: Sequence[EncodedPrompt], lengths: torch.Tensor) -> list[tuple[slice, bool]]:
        """Split a micro-batch between its groups so that no pass exceeds the token budget, if there is one.

        Every rank makes as many passes as the one that needs most, for each may be a collective operation: the passes
        that are marked False repeat the first and must not count.

        Args:
            rows: B prompts, those of a group being the same object.
            lengths: (B,) completion lengths.
        """
        budget = self.settings.max_tokens_per_pass
        if budget is None:
            return [(slice(0, len(rows)), True)]
        shared = self.settings.shared_prefix != "off"
        pieces: list[slice] = []
        used = budget
        for first, stop in _groups(rows):
            tokens = int(lengths[first:stop].sum()) + len(rows[first]) * (1 if shared else stop - first)
            if pieces and used + tokens <= budget:
                pieces[-1] = slice(pieces[-1].start, stop)
                used += tokens
            else:
                pieces.append(slice(first, stop))
                used = tokens
        count = torch.tensor(len(pieces), device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        return [(piece, True) for piece in pieces] + [(pieces[0], False)] * (most - len(pieces))

    def _reference_log_probs(self, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        if self.ref_model is not None:
            return self._log_probs(self.ref_model, ids, mask, keep)
        # With LoRA the reference is the policy without its adapters.
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self._log_probs(self.model, ids, mask, keep)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *_: Any,
        compute_entropy: bool = False,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Log-probabilities (and entropies) (B, logits_to_keep) of the completions, with pixels.

        Raises:
            BlindInputError: the rows' prompts are not known, do not match ``input_ids``, or a completion holds vision
                tokens (which only sampling without suppressing them can produce).
            UserError: a log-probability is not a finite number.
        """
        rows = self._rows
        if rows is None or len(rows) != len(input_ids):
            raise BlindInputError("a forward pass was asked for without the pixels of its rows")
        width = input_ids.shape[1] - logits_to_keep
        for index, prompt in enumerate(rows):
            self.encoder.check_sighted(prompt)
            if not torch.equal(input_ids[index, width - len(prompt) : width].cpu(), self.encoder.model_ids(prompt)):
                raise BlindInputError(f"row {index} of the batch is not the prompt its pixels belong to")
        seen = attention_mask[:, width:].bool()
        vision = torch.tensor(self.encoder.vision_token_ids, device=input_ids.device)
        if bool((torch.isin(input_ids[:, width:], vision) & seen).any()):
            raise BlindInputError("a completion holds vision tokens; they must be suppressed when sampling")
        completions = [ids[kept].tolist() for ids, kept in zip(input_ids[:, width:], seen, strict=True)]
        forward = self._plain_forward if self.settings.shared_prefix == "off" else self._packed_forward
        with self.accelerator.autocast():
            values, entropies = forward(model, rows, completions)
        if not bool(torch.isfinite(values).all()):
            where = sorted({int(row) for row in seen.nonzero()[~torch.isfinite(values)][:, 0]})
            raise UserError(
                f"step {self.state.global_step}: log-probabilities of rows {where} of the batch are not finite; "
                "are the weights, or the frames' normalisation, damaged?"
            )
        empty = values.new_zeros(seen.shape)
        spread = empty.masked_scatter(seen, values)
        entropy = empty.masked_scatter(seen, entropies) if compute_entropy and entropies is not None else None
        return spread, entropy, None

    def _packed_forward(
        self, model: Any, rows: Sequence[EncodedPrompt], completions: Sequence[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        groups = _groups(rows)
        packed = pack(
            self.encoder, [rows[first] for first, _ in groups], [completions[first:stop] for first, stop in groups]
        )
        return log_probs(model, packed, "mask" if self.settings.shared_prefix == "mask" else "two_call")

    def _plain_forward(
        self, model: Any, rows: Sequence[EncodedPrompt], completions: Sequence[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A copy of the prompt, pixels included, for each completion: slow, and obviously right."""
        batch = {name: t.to(self.accelerator.device) for name, t in self.encoder.collate(rows, completions).items()}
        keep = max(len(completion) for completion in completions)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : labels.shape[1] - keep] = -100
        outputs = model(**batch, labels=labels, fused_lm_head=True, use_cache=False)
        seen = labels[:, -keep:] != -100
        entropies = outputs.entropy[:, -keep:][seen] if outputs.entropy is not None else None
        return outputs.log_probs[:, -keep:][seen], entropies

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss, in as many passes as the token budget asks for; their gradients add up to those of one."""
        rows: list[EncodedPrompt] = inputs["prompts"]
        self.clock.lap("other")
        passes = self._passes(rows, inputs["completion_mask"].sum(1))
        total: torch.Tensor | float = 0.0
        try:
            for number, (piece, counts) in enumerate(passes):
                part = {name: value[piece] if _per_row(value, len(rows)) else value for name, value in inputs.items()}
                self._rows = part["prompts"]
                loss: torch.Tensor = super()._compute_loss(model, part)
                # Means over sequences are weighted by how many there are; dapo's sum over tokens adds up as it is.
                weight = 1.0 if self.loss_type == "dapo" else (piece.stop - piece.start) / len(rows)
                loss = loss * (weight * counts)
                self.clock.lap("forward")
                if number < len(passes) - 1:
                    self._backward_early(model, loss)
                    total = total + loss.detach()
                    self.clock.lap("backward")
        finally:
            self._rows = None
        self._watch(loss + total)
        return loss + total

    def _backward_early(self, model: Any, loss: torch.Tensor) -> None:
        """Backward of a pass that is not the last of its micro-batch: gradients add up, nothing else happens yet."""
        if self.is_deepspeed_enabled:
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            engine.set_gradient_accumulation_boundary(is_boundary=False)
            engine.backward(loss, scale_wrt_gas=False)
            return
        with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
            self.accelerator.backward(loss)

    def _watch(self, loss: torch.Tensor) -> None:
        """Stop before a broken loss reaches the weights.

        Raises:
            UserError, DivergedError: saying what was seen.
        """
        if not bool(torch.isfinite(loss)):
            raise UserError(f"step {self.state.global_step}: the loss is {float(loss.detach())}")
        kl = self._metrics["train"]["kl"][-1] if self._metrics["train"]["kl"] else 0.0
        if not kl <= self.settings.max_kl:
            raise DivergedError(
                f"step {self.state.global_step}: KL to the start of this stage is {kl:.3g} per token, above "
                f"grpo.max_kl = {self.settings.max_kl:g}; lower grpo.learning_rate or raise grpo.kl_coefficient"
            )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not np.isfinite(float(norm)):
            raise UserError(f"step {self.state.global_step}: the norm of the gradients is {float(norm)}")
        return norm

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """TRL's, timed: what is not the forward pass or the rollouts is the backward pass."""
        self.clock.lap("wait")
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.clock.lap("backward")
        return loss

    _buffered_inputs: Any
    control: Any
    loss_type: str

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Generate every ``steps_per_generation`` micro-batches; groups stay together and in order."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:
            generated = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(generated, self.args.steps_per_generation)
        buffered: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return buffered

    # -- validation ---------------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Greedy accuracy on the validation split; it selects the checkpoint."""
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ) as model:
            score = validate(
                model,
                self.encoder,
                self.held_out,
                self.asked,
                self.settings.validation,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
        metrics = {"eval_accuracy": score.accuracy, "eval_format_rate": score.format_rate}
        # TRL's own `log` files metrics by the mode of the model; these are complete as they are.
        super(GRPOTrainer, self).log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _groups(rows: Sequence[EncodedPrompt]) -> list[tuple[int, int]]:
    """Where runs of the same prompt start and stop."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row is not rows[i - 1]]
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))


def _per_row(value: Any, count: int) -> bool:
    return isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count)
