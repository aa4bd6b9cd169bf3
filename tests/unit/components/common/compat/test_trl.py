"""TRL: whether an `SFTTrainer` still averages micro-batches of our models as if all had as many tokens."""

from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from vthink.components.common.compat.trl import average_over_all_tokens
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.tiny import build_tiny
from vthink.components.common.video.config import VideoConfig


def test_upstream_does_not_count_the_tokens_of_the_whole_batch(tmp_path: Path) -> None:
    """When the first check fails, TRL or transformers does: `average_over_all_tokens` can go."""
    model, processor = build_tiny(TinyModelConfig(), VideoConfig(), 0)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_length=None,
            report_to=[],
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"row": [0]}),
        data_collator=lambda rows: {},
        processing_class=processor,
    )
    assert not trainer.model_accepts_loss_kwargs
    average_over_all_tokens(trainer)
    assert trainer.model_accepts_loss_kwargs
