"""A training process of test_distributed_grpo.py, started by torchrun: GRPO, its every step written down.

Adam has a large epsilon here: with the usual one it turns the rounding of tiny gradients into whole steps.
"""

# ruff: noqa: E402

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from vthink.components.common.compat.torch import declare_torchvision_operators, load_to_numbered_cpus

# As in training/worker.py, before transformers is imported.
declare_torchvision_operators()
load_to_numbered_cpus()
from trl import GRPOConfig as TRLConfig
from vthink.components.common.compat.deepspeed import repartition
from vthink.components.common.launch.process import skip_garbage_collection_at_exit
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.rows.prepared import PreparedSet
from vthink.components.common.storage.config import StorageConfig
from vthink.components.common.storage.s3 import Storage
from vthink.components.common.training.checkpoints import CheckpointCallback, CheckpointStore
from vthink.components.common.training.processes import leave_group
from vthink.components.common.training.trainer import Validation, trainer_arguments
from vthink.components.grpo.config import GRPOConfig
from vthink.components.grpo.losses import TrainingBatch
from vthink.components.grpo.rewards import Group
from vthink.components.grpo.rollouts import prompt_rows
from vthink.components.grpo.train import trl_arguments
from vthink.components.grpo.trainer import VideoGRPOTrainer


def brevity(group: Group) -> list[float]:
    """A reward that an untrained model's completions differ in."""
    pairs = zip(group.token_counts, group.texts, strict=True)
    return [1.0 / (1 + count) + 0.01 * (len(text) % 7) for count, text in pairs]


class Traced(VideoGRPOTrainer):
    """Writes down rollouts and log-probabilities by (step, row); kills itself or its process group where told."""

    job: dict[str, Any]
    written: dict[str, Any]

    def generate_batch(self, examples: list[dict[str, Any]]) -> TrainingBatch:
        batch = super().generate_batch(examples)
        assert batch.ref_log_probs is not None
        group = self.settings.num_generations
        for index, row in enumerate(example["row"] for example in examples[::group]):
            rows = slice(index * group, (index + 1) * group)
            mask = batch.completion_mask[rows].bool()
            self.written[f"{self.state.global_step}/{row}"] = {
                "ids": [ids[seen].tolist() for ids, seen in zip(batch.completion_ids[rows], mask, strict=True)],
                "advantages": batch.advantages[rows].tolist(),
                "ref": [values[seen].tolist() for values, seen in zip(batch.ref_log_probs[rows], mask, strict=True)],
                "video": batch.prompts[index * group].kind == "video",
            }
        return batch

    def compute_loss(self, model: Any, inputs: TrainingBatch, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.job["fault_step"] == self.state.global_step and int(os.environ["RANK"]) == self.job["fault_rank"]:
            os.kill(os.getpid(), getattr(signal, self.job["fault"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


def main() -> None:
    skip_garbage_collection_at_exit()
    job = json.loads(Path(sys.argv[1]).read_text())
    sys.modules["grpo_worker_rewards"] = sys.modules["__main__"]
    storage = Storage(StorageConfig.load(job["storage"], "job"))
    folder = Path(job["folder"])
    data = PreparedSet.open(storage, job["data"], folder / f"data-{os.environ['RANK']}")
    settings = GRPOConfig(**job["settings"])
    torch.manual_seed(0)
    model, processor = build_tiny(TinyModelConfig(), data.video, 0)
    model = type(model).from_pretrained(job["start"], dtype=torch.float32)
    store = CheckpointStore(storage, job["prefix"], folder / "checkpoints")
    encoder = ChatEncoder(processor, "compact/1", data.video, tokens_per_second(model))
    validation = settings.validation.model_copy(update={"num_items": 2})
    trainer = Traced(
        model=model,
        args=TRLConfig(
            **trainer_arguments(settings, store.folder, True, planned_processes=job["planned_processes"]),
            **(trl_arguments(settings) | {"temperature": 1.0}),
            optim="adamw_torch",
            adam_epsilon=1e-2,
        ),
        train_dataset=prompt_rows(job["rows"]),
        eval_dataset=prompt_rows([0]),
        processing_class=processor,
        callbacks=[CheckpointCallback(store, stop_every_steps=1)],
        settings=settings,
        encoder=encoder,
        split=data.split("train"),
        validation=Validation(encoder, data.split("validation"), validation),
    )
    trainer.job, trainer.written = job, {}
    checkpoint = store.newest()
    if checkpoint is not None:
        repartition(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    norms = {entry["step"]: entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry}
    engine = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    weights = trainer.accelerator.get_state_dict(engine)
    rank = int(os.environ["RANK"])
    (folder / f"trace-{rank}.json").write_text(json.dumps({"rollouts": trainer.written, "norms": norms}))
    leave_group()
    if rank == 0:
        torch.save({name: tensor.float() for name, tensor in weights.items()}, folder / "weights.pt")


if __name__ == "__main__":
    main()
