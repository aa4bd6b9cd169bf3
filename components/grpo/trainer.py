"""GRPO that sees the video: TRL's GRPOTrainer with sighted rollouts, sighted log-probabilities and T-GRPO.

TRL 1.16 accepts prompts with videos and then computes every log-probability without pixels. Here each row carries its
encoded prompt, pixels included, from the rollout into the forward pass of the policy, the old policy and the
reference; `ChatEncoder.collate` refuses a batch whose placeholders have no pixels. The loss, the KL term, the
reference model, the sampler and DeepSpeed stay TRL's.

T-GRPO: Video-R1 (arXiv 2503.21776) §3.1. The shuffled rollouts only decide a bonus; they never enter the loss.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from ..common.chat import BlindInputError, ChatEncoder, EncodedPrompt
from ..common.checkpoints import WholeCheckpoints, validate
from ..common.generation import Completion, Sampling, sample
from ..common.samples import PreparedSample, Split
from ..common.video import Clip
from .config import GRPOConfig
from .rewards import COMPONENTS, Group, group_advantages, group_rewards


@dataclass(slots=True)
class Rollouts:
    """What one generation step produced on this rank; P prompts of G completions."""

    items: list[PreparedSample]
    prompts: list[EncodedPrompt]
    completions: list[list[Completion]]
    shuffled_clips: list[Clip | None]
    shuffled: list[list[Completion]]
    """Completions on the shuffled clips; empty where there is none."""
    rewards: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(P, G, 4) components in the order of `COMPONENTS`."""
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(P, G)"""
    accuracy: list[torch.Tensor] = field(default_factory=list)
    """(G,) graded answers per prompt."""
    shuffled_accuracy: list[torch.Tensor] = field(default_factory=list)
    """(G̃,) graded answers on the shuffled clips per prompt; empty where there are none."""


def prompt_rows(indices: Sequence[int]) -> Dataset:
    """Row numbers in the form that TRL's sampler repeats G times; pixels are looked up when they are needed."""
    return Dataset.from_dict({"prompt": [""] * len(indices), "row": list(indices)})


def frame_order(seed: int, step: int, row: int, num_frames: int) -> np.ndarray:
    """A permutation of the frames, never the identity, that depends on (seed, step, row) alone.

    Frames are permuted before temporal patches are made, so a patch of the shuffled clip joins frames that are not
    neighbours.
    """
    generator = np.random.default_rng(zlib.crc32(f"shuffle/{seed}/{step}/{row}".encode()))
    while True:
        order = generator.permutation(num_frames)
        if num_frames < 2 or not np.array_equal(order, np.arange(num_frames)):
            return order


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
        self._rows: list[EncodedPrompt] | None = None

    # -- rollouts -----------------------------------------------------------------------------------------------------

    def _roll_out(self, rows: Sequence[int]) -> Rollouts:
        """Complete each row's prompt G times on its frames in order and, for T-GRPO, some times on them shuffled."""
        step, config = self.state.global_step, self.settings
        items = [self.split[row] for row in rows]
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
        # Under ZeRO-3 the weights are gathered for this block, so ranks need not make the same number of passes:
        # one may have pictures only, and no shuffled rollouts.
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ) as model:
            batch = config.num_generations * config.prompts_per_step
            completions = sample(model, self.encoder, prompts, sampling, config.num_generations, batch, keys)
            chosen = [position for position, clip in enumerate(clips) if clip is not None]
            shuffled: list[list[Completion]] = [[] for _ in items]
            if chosen and temporal is not None:
                count = max(1, int(config.num_generations * temporal.shuffled_fraction))
                others = [self.encoder.with_clip(prompts[i], clip) for i in chosen if (clip := clips[i]) is not None]
                answered = sample(model, self.encoder, others, sampling, count, batch, [keys[i] ^ 1 for i in chosen])
                for position, group in zip(chosen, answered, strict=True):
                    shuffled[position] = group
        return Rollouts(items, prompts, completions, clips, shuffled)

    def _score(self, rollouts: Rollouts) -> None:
        """Fill in rewards and advantages; statistics are per group."""
        config = self.settings
        earned = [
            group_rewards(
                Group(
                    sample=item.sample,
                    texts=[completion.text for completion in group],
                    token_counts=[len(completion.token_ids) for completion in group],
                    shuffled_texts=[completion.text for completion in shuffled],
                ),
                config.reward_config,
                self.encoder.template.answer_format,
            )
            for item, group, shuffled in zip(rollouts.items, rollouts.completions, rollouts.shuffled, strict=True)
        ]
        rollouts.rewards = torch.stack([group.components for group in earned])
        rollouts.accuracy = [group.accuracy for group in earned]
        rollouts.shuffled_accuracy = [group.shuffled_accuracy for group in earned]
        totals = rollouts.rewards.sum(-1)
        if config.permute_rewards:
            generator = torch.Generator().manual_seed(
                zlib.crc32(f"permute/{config.seed}/{self.state.global_step}".encode())
            )
            totals = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in totals])
        rollouts.advantages = group_advantages(totals, config.scale_by_std)

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
        clock = time.perf_counter()
        rollouts = self._roll_out(rows)
        rolled_out = time.perf_counter()
        self._score(rollouts)
        scored = time.perf_counter()

        device = self.accelerator.device
        prompts = [prompt for prompt in rollouts.prompts for _ in range(group)]
        completions = [completion.token_ids for row in rollouts.completions for completion in row]
        longest_prompt = max(len(prompt) for prompt in prompts)
        batch = self.encoder.collate(prompts, completions)
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        output: dict[str, Any] = {
            "prompt_ids": ids[:, :longest_prompt],
            "prompt_mask": mask[:, :longest_prompt],
            "completion_ids": ids[:, longest_prompt:],
            "completion_mask": mask[:, longest_prompt:],
            "advantages": rollouts.advantages.reshape(-1).to(device),
            "num_items_in_batch": self.accelerator.gather(mask[:, longest_prompt:].sum()).sum(),
            "prompts": prompts,
        }
        self._rows = prompts
        with torch.no_grad():
            # One update per rollout needs no old policy: its log-probabilities are the policy's own, detached.
            if self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0:
                output["old_per_token_logps"] = self._log_probs(self.model, ids, mask, output["completion_ids"].size(1))
            if self.beta != 0.0:
                output["ref_per_token_logps"] = self._reference_log_probs(ids, mask, output["completion_ids"].size(1))
        self._rows = None
        self._record(rollouts, rolled_out - clock, scored - rolled_out, time.perf_counter() - scored)
        return output

    def _record(self, rollouts: Rollouts, rollout_s: float, reward_s: float, log_probs_s: float) -> None:
        """Keep this step's figures for the next log, averaged over ranks."""
        lengths = [float(len(c.token_ids)) for group in rollouts.completions for c in group]
        shuffled = [float(value.mean()) for value in rollouts.shuffled_accuracy if value.numel()]
        values = {f"grpo/reward/{name}": rollouts.rewards[:, :, i].mean() for i, name in enumerate(COMPONENTS)}
        values |= {
            "grpo/reward/total": rollouts.rewards.sum(-1).mean(),
            "grpo/accuracy_ordered": torch.stack(rollouts.accuracy).mean(),
            "grpo/completion_length": torch.tensor(lengths).mean(),
            "grpo/zero_std_groups": (rollouts.rewards.sum(-1).std(-1) < 1e-6).float().mean(),
            "time/rollout_s": torch.tensor(rollout_s),
            "time/reward_s": torch.tensor(reward_s),
            "time/log_probs_s": torch.tensor(log_probs_s),
        }
        # A rank without a video in this step has no shuffled accuracy: NaN leaves it out of the mean.
        values["grpo/accuracy_shuffled"] = torch.tensor(shuffled).mean() if shuffled else torch.tensor(float("nan"))
        stacked = torch.stack([value.float() for value in values.values()]).to(self.accelerator.device)
        averages = self.accelerator.gather(stacked).view(-1, len(values)).nanmean(0)
        for name, value in zip(values, averages.tolist(), strict=True):
            self._metrics["train"][name].append(value)
        every = self.settings.rollout_table_every_steps
        if self.on_rollouts is not None and self.accelerator.is_main_process and self.state.global_step % every == 0:
            self.on_rollouts(self.state.global_step, rollouts)

    # -- log-probabilities --------------------------------------------------------------------------------------------

    def _log_probs(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        """(B, keep) log-probabilities in slices of the training batch, as the loss computes them."""
        rows, size = self._rows, self.args.per_device_train_batch_size
        if rows is None:
            raise BlindInputError("log-probabilities were asked for without the prompts they belong to")
        parts = []
        for start in range(0, len(rows), size):
            self._rows = rows[start : start + size]
            part, _, _ = self._get_per_token_logps_and_entropies(
                model, ids[start : start + size], mask[start : start + size], keep
            )
            parts.append(part)
        self._rows = rows
        return torch.cat(parts)

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
            BlindInputError: the rows' prompts are not known, or do not match ``input_ids``.
        """
        rows = self._rows
        if rows is None or len(rows) != len(input_ids):
            raise BlindInputError("a forward pass was asked for without the pixels of its rows")
        media = {name: tensor.to(input_ids.device) for name, tensor in self.encoder.media(rows).items()}
        # Only prompt positions may hold placeholders, however the completion was sampled.
        types = torch.zeros_like(input_ids)
        width = input_ids.shape[1] - logits_to_keep
        for index, prompt in enumerate(rows):
            self.encoder.check_sighted(prompt)
            if not torch.equal(input_ids[index, width - len(prompt) : width].cpu(), prompt.input_ids):
                raise BlindInputError(f"row {index} of the batch is not the prompt its pixels belong to")
            types[index, width - len(prompt) : width] = prompt.mm_token_type_ids.to(types.device)
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        with self.accelerator.autocast():
            outputs = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                mm_token_type_ids=types,
                labels=labels,
                fused_lm_head=True,
                use_cache=False,
                **media,
            )
        entropies = outputs.entropy[:, -logits_to_keep:] if compute_entropy else None
        return outputs.log_probs[:, -logits_to_keep:], entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs["prompts"]
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._rows = None
        return loss

    _buffered_inputs: Any
    control: Any

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
