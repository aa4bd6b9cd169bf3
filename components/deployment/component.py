"""The KFP components of registration and deployment: they talk to the registry and to the served model over HTTP."""

import os

from kfp import dsl

CONTROL_IMAGE = os.environ.get("VTHINK_IMAGE_CONTROL", "ghcr.io/vthink/vthink-control-python:0.1.0")
SERVE_IMAGE = os.environ.get("VTHINK_IMAGE_SERVE", "ghcr.io/vthink/vthink-serve-python:0.1.0")


@dsl.component(base_image=CONTROL_IMAGE, install_kfp_package=False)
def register(run: str, config: str, model: str, evaluation: str, data: str) -> str:
    """Register the trained model as the candidate.

    Args:
        run: RunContext as JSON.
        config: DeploymentConfig as JSON.
        model: URI of the manifest of the training stage whose model it is.
        evaluation: URI of the evaluation's manifest.
        data: URI of the prepared data's manifest.

    Returns:
        URI of the stage's manifest.
    """
    from vthink.components.deployment.registry import register_model

    return register_model(run, config, model, evaluation, data)


@dsl.component(base_image=SERVE_IMAGE, install_kfp_package=False)
def deploy(run: str, config: str, registered: str, evaluation: str, data: str) -> str:
    """Serve the candidate, replay held-out items, and promote it when the answers agree.

    Args:
        run: RunContext as JSON.
        config: DeploymentConfig as JSON.
        registered: URI of the registration's manifest.
        evaluation: URI of the evaluation's manifest.
        data: URI of the prepared data's manifest.

    Returns:
        URI of the stage's manifest.
    """
    from vthink.components.deployment.deploy import deploy_model

    return deploy_model(run, config, registered, evaluation, data)
