"""SFT's training process: TRL's SFTTrainer with a collator that brings the video and scores the response alone.

`train` is called in each process that torchrun starts: ``python -m vthink.components.sft --job URI``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..common.answers.writing import write_response
from ..common.model.chat import ChatEncoder
from ..common.rows.prepared import Split
from ..common.training.arguments import adapter_config, freeze, trainer_arguments
from ..common.training.callbacks import CheckpointCallback, ProgressCallback, StopOnSignal
from ..common.training.job import TrainingJob
from ..common.training.resume import WholeCheckpoints
from ..common.training.validation import pick_items, validate
from .config import SFTConfig


class ResponseCollator:
    """Batches rows (their numbers in the split) for SFT: prompt with pixels, response, labels on the response."""

    def __init__(
        self, split: Split, encoder: ChatEncoder, response: Literal["auto", "video_r1", "video_thinker"]
    ) -> None:
        self.split, self.encoder = split, encoder
        self.style = encoder.template.answer_format if response == "auto" else response

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        """Returns: the model's keyword arguments and ``labels`` (B, P+C), −100 outside the response and its end."""
        items = [self.split[row["row"]] for row in rows]
        prompts = [self.encoder.encode_sample(item) for item in items]
        responses = [self.encoder.encode_response(write_response(item.sample, self.style)) for item in items]
        batch = self.encoder.collate(prompts, responses)
        prompt_length = max(len(prompt) for prompt in prompts)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :prompt_length] = -100
        return batch | {"labels": labels}


class VideoSFTTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's SFTTrainer, with greedy answers on the validation split in the place of an evaluation loss."""

    validation: tuple[ChatEncoder, Split, list[int]]
    settings: SFTConfig
    control: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As TRL's, with a loss that is the mean over the tokens of the whole batch.

        The Qwen-VL models say that they cannot be told how many those are, and the trainer would average over
        processes and accumulated micro-batches as if all had as many. TRL's loss does not need the model for it.
        """
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation accuracy; ends the training once it is as good as a cold start should be."""
        encoder, split, indices = self.validation
        # Under ZeRO-3 this gathers the weights, so that ranks may decode different numbers of tokens.
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            score = validate(
                model,
                encoder,
                split,
                indices,
                self.settings.validation,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
        metrics = {"eval_accuracy": score.accuracy, "eval_format_rate": score.format_rate}
        # TRL's own `log` would add the training metrics gathered so far; these are complete as they are.
        super(SFTTrainer, self).log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        target = self.settings.stop_at_accuracy
        if target is not None and score.accuracy >= target and self.state.global_step > 0:
            self.control.should_training_stop = True
        return metrics


def train(job: dict[str, Any]) -> None:
    """Run the job to its end, from its newest checkpoint if it has one; rank 0 writes the manifest last."""
    config = SFTConfig.load(job["config"], "job")
    opened = TrainingJob.open("sft", job)
    model, encoder = opened.loaded.model, opened.loaded.encoder
    freeze(model, config)
    training, held_out = opened.data.split("train"), opened.data.split("validation")
    indices = pick_items(training, config.kinds, config.images)
    asked = pick_items(held_out, config.validation.kinds)[: config.validation.num_items]
    arguments = TRLConfig(
        **trainer_arguments(
            config,
            opened.store.folder,
            opened.loaded.device.type == "cpu",
            opened.job["model"]["dtype"],
            opened.job.get("processes"),
        ),
        per_device_train_batch_size=config.batch_size,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = VideoSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": indices}),
        eval_dataset=Dataset.from_dict({"row": asked}),
        data_collator=ResponseCollator(training, encoder, config.response),
        processing_class=encoder.processor,
        peft_config=adapter_config(model, config),
        callbacks=[
            CheckpointCallback(opened.store),
            StopOnSignal(opened.store),
            ProgressCallback("sft", opened.tracker),
        ],
    )
    trainer.validation, trainer.settings = (encoder, held_out, asked), config
    opened.run(trainer)
    opened.finish(trainer, {"samples": len(indices), "validation_items": len(asked)})
