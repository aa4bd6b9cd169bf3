"""SFT's training process: TRL's SFTTrainer with a collator that brings the video and scores the response alone."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from ..common.answers.formats import write_response
from ..common.compat.trl import average_over_all_tokens
from ..common.launch.job import TrainingJob
from ..common.model.chat import ChatEncoder
from ..common.rows.prepared import Split
from ..common.training.run import TrainingRun
from ..common.training.trainer import Validation, VideoTrainer
from .config import SFTConfig


class ResponseCollator:
    """Batches rows (their numbers in the split) for SFT: prompt with pixels, response, labels on the response."""

    def __init__(self, split: Split, encoder: ChatEncoder, response: str) -> None:
        """Args: ``response``: `SFTConfig.response`."""
        self.split, self.encoder = split, encoder
        self.answer_format = encoder.template.answer_format if response == "auto" else response

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        """Returns: the model's keyword arguments and ``labels`` (B, P+C), −100 outside the response and its end."""
        items = [self.split[row["row"]] for row in rows]
        prompts = [self.encoder.encode_sample(item) for item in items]
        responses = [self.encoder.encode_response(write_response(item.sample, self.answer_format)) for item in items]
        batch = self.encoder.collate(prompts, responses)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, : max(map(len, prompts))] = -100
        return batch | {"labels": labels}


class VideoSFTTrainer(VideoTrainer, SFTTrainer):
    """TRL's SFTTrainer, with greedy answers on the validation split in the place of an evaluation loss."""

    control: Any

    def __init__(self, *args: Any, validation: Validation, stop_at_accuracy: float | None, **kwargs: Any) -> None:
        """TRL's arguments, the validation, and the accuracy in it that ends the training."""
        super().__init__(*args, **kwargs)
        average_over_all_tokens(self)
        self.validation, self.stop_at_accuracy = validation, stop_at_accuracy

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation accuracy; ends the training once it is as good as a cold start should be."""
        metrics = super().evaluate()
        if self.stop_at_accuracy is not None and self.state.global_step > 0:
            self.control.should_training_stop |= metrics["eval_accuracy"] >= self.stop_at_accuracy
        return metrics


def train_sft(job: TrainingJob) -> None:
    """Fine-tune to the end, from the newest checkpoint if there is one; rank 0 writes the manifest last."""
    config = SFTConfig.load(job.config, "job")
    run = TrainingRun(job, config)
    arguments = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = VideoSFTTrainer(
        args=TRLConfig(**run.arguments(), per_device_train_batch_size=config.batch_size, **arguments),
        train_dataset=Dataset.from_dict({"row": run.rows}),
        eval_dataset=Dataset.from_dict({"row": run.validation.rows}),
        data_collator=ResponseCollator(run.train, run.encoder, config.response),
        stop_at_accuracy=config.stop_at_accuracy,
        **run.keywords(),
    )
    run.complete(trainer, counts={"samples": len(run.rows)})
