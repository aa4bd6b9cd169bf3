"""The KFP component of the SFT stage: a launcher without a GPU; the training job owns those."""

import os

from kfp import dsl

IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sft(run: str, config: str, model: str, data: str) -> str:
    """Fine-tune the base model on reasoning traces.

    Args:
        run: RunContext as JSON.
        config: SFTConfig as JSON.
        model: ModelConfig as JSON.
        data: URI of the prepared data's manifest.

    Returns:
        URI of the stage's manifest.
    """
    from vthink.components.common.training.stage import train_stage
    from vthink.components.sft.config import SFTConfig

    return train_stage("sft", SFTConfig, "vthink.components.sft", run, config, model, data)
