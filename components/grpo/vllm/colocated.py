"""A vLLM inside the training process."""

import importlib.util
import os
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.utils import ensure_master_addr_port

from ...common.errors import UserError
from .answer import Answer, engine_answer
from .request import Request, engine_request
from .version import check_version
from .weights import PolicyWeights


class ColocatedVLLM:
    """vLLM's engine in this process, for this process's prompts."""

    def __init__(self, weights: PolicyWeights, sleep: bool, **arguments: Any) -> None:
        """Start it on the folder that the policy was loaded from.

        Args:
            sleep: give back its memory between rollouts; only accelerators can.
            arguments: of ``vllm.LLM``.

        Raises:
            UserError: vLLM is missing, of a version that is not supported, or does not start."""
        accelerator = weights.accelerator
        self._weights = weights
        self._sleeps = sleep and accelerator.device.type != "cpu"
        if importlib.util.find_spec("vllm") is None:
            raise UserError("grpo.vllm needs vLLM where GRPO trains: use the training image, or install it")
        ranks = {"RANK": accelerator.process_index, "LOCAL_RANK": accelerator.local_process_index}
        os.environ.update({name: str(rank) for name, rank in ranks.items()})
        os.environ["WORLD_SIZE"] = str(accelerator.num_processes)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must share this process: weights are not copied
        ensure_master_addr_port()
        import vllm

        check_version(vllm.__version__, "the vLLM of the training process")
        try:
            self._engine = vllm.LLM(
                model=weights.model.name_or_path,
                enable_sleep_mode=self._sleeps,
                enforce_eager=accelerator.device.type == "cpu",  # where compiling takes minutes
                distributed_executor_backend="external_launcher",
                seed=accelerator.process_index,
                mm_device_do_normalize=False,  # patches are normalised already
                **arguments,
            )
        except Exception as error:  # of pydantic, as a rule, with the cause on a later line
            raise UserError(f"vLLM does not start: {type(error).__name__}: {_one_line(error)}") from error
        self.sleep()

    def load(self) -> None:
        """Give it the policy's present weights, and forget what was computed with others."""
        if self._sleeps:
            torch.cuda.empty_cache()
            self._engine.wake_up()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(self._weights)})
        # The worker has emptied its cache of vision features, the scheduler not yet: it would count on them.
        self._engine.llm_engine.reset_encoder_cache()
        self._engine.reset_mm_cache()
        if not self._engine.reset_prefix_cache():
            raise UserError("vLLM kept cached prompts of the weights before: requests are still running")

    def sleep(self) -> bool:
        """Give back its memory, if so configured. Returns whether the weights are lost."""
        if self._sleeps:
            self._engine.sleep(level=2)
        return self._sleeps

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """What vLLM returns for each request."""
        engine = self._engine.llm_engine
        names = [f"{uuid.uuid4().hex}-{index}" for index in range(len(requests))]
        try:
            for name, request in zip(names, requests, strict=True):
                engine.add_request(name, *engine_request(request))
        except Exception as error:  # longer than the model's context or the cache of vision features, as a rule
            engine.abort_request(names)
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise UserError(f"vLLM refused a prompt of {len(request.token_ids)} tokens: {reason}") from error
        answers: dict[str, Answer] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = engine_answer(output)
        if missing := [name for name in names if name not in answers]:
            raise UserError(f"vLLM finished without answering {len(missing)} of {len(names)} prompts")
        return [answers[name] for name in names]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
