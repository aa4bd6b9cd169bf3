"""The version in service: which it is, and how it was evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.context import RunContext
from ..common.errors import UserError
from ..common.tracking.client import registry_client

EVALUATION_TAG = "vthink.evaluation_uri"
"""Tag of a registered version: the manifest of the evaluation that it passed the gate with."""


@dataclass(frozen=True, slots=True)
class Champion:
    """The version in service."""

    version: str
    evaluation_uri: str


def find_champion(context: RunContext) -> Champion | None:
    """The registered version with the alias ``champion``, or None while there is none.

    Raises:
        UserError: the registry cannot be asked, or the version does not say how it was evaluated.
    """
    client = registry_client(context.tracking, context.storage)
    from mlflow.exceptions import MlflowException

    name = context.tracking.registered_model
    try:
        version = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise UserError(f"cannot ask the model registry for the champion of '{name}': {error}") from error
    uri = version.tags.get(EVALUATION_TAG)
    if not uri:
        raise UserError(
            f"champion version {version.version} of '{name}' has no tag {EVALUATION_TAG}; set it to the manifest of "
            "its evaluation, or remove the alias"
        )
    return Champion(str(version.version), uri)
