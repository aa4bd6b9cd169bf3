"""The KFP component of the GRPO stage: a launcher without a GPU; the training job owns those."""

import os

from kfp import dsl

IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def grpo(run: str, config: str, model: str, data: str, policy: str) -> str:
    """Improve the policy by (T-)GRPO.

    Args:
        run: RunContext as JSON.
        config: GRPOConfig as JSON.
        model: ModelConfig as JSON.
        data: URI of the prepared data's manifest.
        policy: URI of the SFT manifest, or an empty string to start from the base model.

    Returns:
        URI of the stage's manifest.
    """
    from vthink.components.common.training.stage import train_stage
    from vthink.components.grpo.config import GRPOConfig

    return train_stage("grpo", GRPOConfig, "vthink.components.grpo", run, config, model, data, policy)
