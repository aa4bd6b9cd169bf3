"""One encoder per model family."""

import pytest
from vthink.components.common.model.chat import ChatEncoder
from vthink.tests.unit.components.grpo.vllm.prompts import (
    FAMILIES,
    build,
)


@pytest.fixture(scope="module", params=list(FAMILIES))
def encoder(request: pytest.FixtureRequest) -> ChatEncoder:
    return build(request.param)[2]
