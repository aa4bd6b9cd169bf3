"""GRPO's training process, as each process that torchrun starts calls it."""

from functools import partial
from typing import Any

from trl import GRPOConfig as TRLConfig

from ..common.launch.job import TrainingJob
from ..common.training.run import TrainingRun
from .config import GRPOConfig
from .rollout_table import write_rollouts
from .rollouts import prompt_rows
from .trainer import VideoGRPOTrainer


def train_grpo(job: TrainingJob) -> None:
    """Improve the policy to the end, from the newest checkpoint if there is one; rank 0 writes the manifest last."""
    config = GRPOConfig.load(job.config, "job")
    run = TrainingRun(job, config)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy", "greater_is_better": True}
    trainer = VideoGRPOTrainer(
        args=TRLConfig(**run.arguments(), **trl_arguments(config, job.node.rollout_url), **best),
        train_dataset=prompt_rows(run.rows),
        eval_dataset=prompt_rows(run.validation.rows),
        settings=config,
        encoder=run.encoder,
        split=run.train,
        **run.keywords(stop_every_steps=config.num_iterations),
    )
    if run.tracker is not None:
        trainer.on_rollouts = partial(write_rollouts, run.tracker, run.loaded.video, config.reward_config.names)
    run.complete(trainer, counts={"prompts": len(run.rows)})


def trl_arguments(config: GRPOConfig, rollout_url: str | None = None) -> dict[str, Any]:
    """What TRL's sampler, reference model and vLLM need to know; rewards, loss and requests are ours.

    Args: ``rollout_url``: of the rollout server, where it is another than the configuration's."""
    batch = config.prompts_per_step * config.num_generations
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "shuffle_dataset": config.shuffle,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,  # of the log-probabilities, as of the rollouts
        "beta": config.kl_coefficient,  # whether there is a reference model
        "num_iterations": config.num_iterations,
    }
    if config.vllm is not None:
        arguments |= {
            "use_vllm": True,
            "vllm_mode": config.vllm.mode,
            "vllm_server_base_url": rollout_url or config.vllm.server_url,
            "vllm_gpu_memory_utilization": config.vllm.gpu_memory_utilization,
            "vllm_enable_sleep_mode": config.vllm.sleep and config.vllm.mode == "colocate",
        }
    return arguments
