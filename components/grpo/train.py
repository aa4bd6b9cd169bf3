"""GRPO's training process.

`train` is called in each process that torchrun starts: ``python -m vthink.components.grpo --job URI``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl import GRPOConfig as TRLConfig

from ..common.html.page import page
from ..common.tracking.run import Tracker
from ..common.training.arguments import adapter_config, freeze, trainer_arguments
from ..common.training.callbacks import CheckpointCallback, ProgressCallback, StopOnSignal
from ..common.training.job import TrainingJob
from ..common.training.validation import pick_items
from ..common.video.codec import encode_frames
from ..common.video.config import VideoConfig
from .config import GRPOConfig
from .rollout_page import RolloutCompletion, RolloutRow, rollout_table
from .rollouts import Rollouts, prompt_rows
from .trainer import VideoGRPOTrainer

_SHOWN_PROMPTS = 4


def rollout_rows(rollouts: Rollouts, video: VideoConfig, names: Sequence[str]) -> list[RolloutRow]:
    """The first prompts of a step for the rollout table: frames, completions, rewards by name, advantages."""
    rows = []
    for i, item in enumerate(rollouts.items[:_SHOWN_PROMPTS]):
        clip = rollouts.shuffled_clips[i]
        rows.append(
            RolloutRow(
                prompt=item.sample.question,
                truth=item.sample.answer,
                frames_ordered=encode_frames(item.clip, video),
                frames_shuffled=encode_frames(clip, video) if clip is not None else [],
                completions_ordered=[
                    RolloutCompletion(
                        text=completion.text,
                        rewards=dict(zip(names, rollouts.rewards[i, j].tolist(), strict=True))
                        | {"total": float(rollouts.rewards[i, j].sum())},
                        advantage=float(rollouts.advantages[i, j]),
                    )
                    for j, completion in enumerate(rollouts.completions[i])
                ],
                completions_shuffled=[
                    RolloutCompletion(text=completion.text, rewards={"accuracy": float(graded)}, advantage=None)
                    for completion, graded in zip(
                        rollouts.shuffled[i], rollouts.earned[i].shuffled_accuracy.tolist(), strict=True
                    )
                ],
            )
        )
    return rows


def table_writer(tracker: Tracker, video: VideoConfig, names: Sequence[str]) -> Callable[[int, Rollouts], None]:
    """Writes a step's rollouts to MLflow: a page to look at and a table to search."""

    def write(step: int, rollouts: Rollouts) -> None:
        rows = rollout_rows(rollouts, video, names)
        html = page(f"Rollouts at step {step}", [("", rollout_table(rows))])
        tracker.log_html(f"rollouts/step-{step:06d}.html", html)
        columns: dict[str, list[Any]] = {name: [] for name in ("step", "question", "truth", "frames", "completion")}
        columns |= {name: [] for name in (*names, "advantage")}
        for row in rows:
            for frames, group in (
                ("ordered", row.completions_ordered),
                ("shuffled", row.completions_shuffled),
            ):
                for completion in group:
                    columns["step"].append(step)
                    columns["question"].append(row.prompt)
                    columns["truth"].append(row.truth)
                    columns["frames"].append(frames)
                    columns["completion"].append(completion.text)
                    columns["advantage"].append(completion.advantage)
                    for name in names:
                        columns[name].append(completion.rewards.get(name))
        # A table of its own for each step: a training that is resumed replaces the steps it repeats, and no others.
        tracker.log_table(f"rollouts/step-{step:06d}.json", columns)

    return write


def train(job: dict[str, Any]) -> None:
    """Run the job to its end, from its newest checkpoint if it has one; rank 0 writes the manifest last."""
    config = GRPOConfig.load(job["config"], "job")
    opened = TrainingJob.open("grpo", job)
    model, encoder = opened.loaded.model, opened.loaded.encoder
    freeze(model, config)
    training, held_out = opened.data.split("train"), opened.data.split("validation")
    indices = pick_items(training, config.kinds, config.images)
    asked = pick_items(held_out, config.validation.kinds)[: config.validation.num_items]
    batch = config.prompts_per_step * config.num_generations
    arguments = TRLConfig(
        **trainer_arguments(
            config,
            opened.store.folder,
            opened.loaded.device.type == "cpu",
            opened.job["model"]["dtype"],
            opened.job.get("processes"),
        ),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        shuffle_dataset=config.shuffle,
        num_generations=config.num_generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,  # of the log-probabilities, as of the rollouts
        beta=config.kl_coefficient,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        num_iterations=config.num_iterations,
        loss_type="grpo" if config.loss == "gspo" else config.loss,
        importance_sampling_level="sequence" if config.loss == "gspo" else "token",
        scale_rewards="group" if config.scale_by_std else "none",
        **vllm_arguments(config),
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        greater_is_better=True,
        log_completions=False,
    )
    trainer = VideoGRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=prompt_rows(indices),
        eval_dataset=prompt_rows(asked),
        processing_class=encoder.processor,
        reward_funcs=[_scored_by_group],
        peft_config=adapter_config(model, config),
        callbacks=[
            CheckpointCallback(opened.store),
            StopOnSignal(opened.store, config.num_iterations),
            ProgressCallback("grpo", opened.tracker),
        ],
        settings=config,
        encoder=encoder,
        split=training,
        held_out=held_out,
        asked=asked,
        on_rollouts=table_writer(opened.tracker, opened.loaded.video, config.reward_config.names)
        if opened.tracker
        else None,
    )
    opened.run(trainer)
    best = {"best_step": trainer.state.best_global_step, "best_accuracy": trainer.state.best_metric}
    opened.finish(trainer, {"prompts": len(indices), "validation_items": len(asked)}, best)


def vllm_arguments(config: GRPOConfig) -> dict[str, Any]:
    """TRL's settings for starting vLLM and moving weights to it; the requests are ours."""
    if config.vllm is None:
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": config.vllm.mode,
        "vllm_server_base_url": config.vllm.server_url,
        "vllm_gpu_memory_utilization": config.vllm.gpu_memory_utilization,
        "vllm_enable_sleep_mode": config.vllm.sleep and config.vllm.mode == "colocate",
        "vllm_importance_sampling_correction": True,
    }


def _scored_by_group(**_: Any) -> list[float]:
    """TRL wants a reward function; ours needs the whole group and is called by `VideoGRPOTrainer` itself."""
    raise RuntimeError("rewards come from grpo/rewards.py")
