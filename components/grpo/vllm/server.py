"""vLLM servers over HTTP: their settings, the policy's weights, and completions."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file

from ...common.errors import UserError
from .answer import Answer, server_answer
from .request import Request, server_payload
from .version import check_version
from .weights import PolicyWeights

_GENERATE = "/inference/v1/generate"
_CONCURRENCY = 32  # requests that this process has on their way at a time, at all servers together
_NCCL_PORT = 51216  # the first server's; TRL's default


class VLLMServers:
    """Servers that share the rollouts of all training processes. Each is started by ``VLLM_SERVER_DEV_MODE=1 vllm serve
    MODEL --enable-scale-out --no-mm-device-do-normalize``, with the policy's ``--dtype`` and ``--logprobs-mode``; where
    weights come by NCCL with ``--weight-transfer-config '{"backend": "nccl"}'`` too."""

    def __init__(
        self, urls: Sequence[str], weights: PolicyWeights, folder: str | None, timeout_s: float = 1800.0
    ) -> None:
        """Connect to them.

        Args:
            folder: through which weights go as files (see `VLLMConfig.weights_folder`).
            timeout_s: longest wait for one answer.

        Raises:
            UserError: a server cannot be reached."""
        self._weights, self._folder = weights, folder
        self._servers = [_Server(url, timeout_s) for url in urls]
        self._by_file = folder is not None or weights.accelerator.device.type == "cpu"
        self._clients: list[Any] = []
        if not self._by_file and weights.accelerator.is_main_process:
            from trl.generation.vllm_client import VLLMClient

            for number, url in enumerate(urls):
                client = VLLMClient(base_url=url, group_port=_NCCL_PORT + number)
                client.init_communicator(device=weights.accelerator.device)
                self._clients.append(client)

    def check(self, dtype: torch.dtype, logprobs_mode: str) -> None:
        """Refuse servers of another version, type or mode than rollouts need.

        Raises:
            UserError: which server must be started how."""
        for server in self._servers:
            server.check(str(dtype).removeprefix("torch."), logprobs_mode)

    def load(self) -> None:
        """Give them the policy's present weights, and let them forget what was computed with others. All processes take
        part; the main one sends."""
        main = self._weights.accelerator.is_main_process
        if self._by_file:
            tensors = {name: tensor.detach().cpu() for name, tensor in self._weights if main}
            if main:
                with tempfile.TemporaryDirectory(prefix="vthink-policy-", dir=self._folder) as folder:
                    Path(folder).chmod(0o755)  # a server may run as another user
                    save_file(
                        {name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/model.safetensors"
                    )
                    for server in self._servers:
                        server.call(
                            "POST",
                            "/collective_rpc",
                            json={"method": "reload_weights", "kwargs": {"weights_path": folder}},
                        )
        else:
            self._send()
        if main:
            for server in self._servers:
                server.forget()
        self._weights.accelerator.wait_for_everyone()

    def _send(self) -> None:
        """By NCCL, to one server after the other; each must know what it is about to receive."""
        metadata = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in self._weights]
        for number in range(len(self._servers)):
            if self._clients:
                self._clients[number].update_named_params(metadata, iter(self._weights))
            else:
                for _ in self._weights:
                    pass

    def sleep(self) -> bool:
        """Servers do not sleep: they keep the weights."""
        return False

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        """What the servers return for each request; they take turns."""
        first = self._weights.accelerator.process_index  # so that processes with one prompt do not all ask the first
        servers = [self._servers[(first + number) % len(self._servers)] for number in range(len(requests))]
        with ThreadPoolExecutor(min(_CONCURRENCY, len(requests)) or 1, "vllm") as pool:
            return list(pool.map(_Server.generate, servers, requests))


class _Server:
    def __init__(self, url: str, timeout_s: float) -> None:
        self._http = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=30.0, pool=None),
            transport=httpx.HTTPTransport(retries=3, limits=httpx.Limits(max_connections=_CONCURRENCY)),
        )

    def check(self, dtype: str, logprobs_mode: str) -> None:
        url = self._http.base_url
        version = self.call("GET", "/version")
        body = self.call("GET", "/server_info", params={"config_format": "json"})
        try:
            check_version(str(version["version"]), str(url))
            model = body["vllm_config"]["model_config"]
            wanted = {
                "--no-mm-device-do-normalize": not model["multimodal_config"]["mm_device_do_normalize"],
                f"--logprobs-mode {logprobs_mode}": model["logprobs_mode"] == logprobs_mode,
                f"--dtype {dtype}": str(model["dtype"]).removeprefix("torch.") == dtype,
            }
        except (KeyError, TypeError) as error:
            raise UserError(f"{url}: /server_info has another form: {error!r}") from error
        if missing := [option for option, is_set in wanted.items() if not is_set]:
            raise UserError(f"{url}: start the vLLM server with {' '.join(missing)}, or its rollouts would be wrong")

    def generate(self, request: Request) -> Answer:
        body = self.call("POST", _GENERATE, json=server_payload(request))
        try:
            return server_answer(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self._http.base_url}: {_GENERATE} answered in another form: {error!r}") from error

    def forget(self) -> None:
        """Empty the caches of prompts and of vision features (`ColocatedVLLM.load` says why all of them)."""
        for cache in ("encoder", "mm", "prefix"):
            answer = self.call("POST", f"/reset_{cache}_cache")
            if isinstance(answer, dict) and not answer.get("success", True):
                raise UserError(f"{self._http.base_url}: cached prompts of the weights before are still in use")

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON at ``path``; None where the answer is empty.

        Raises:
            UserError: the server cannot be reached, refuses, or does not answer with JSON."""
        url = f"{str(self._http.base_url).rstrip('/')}{path}"
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise UserError(f"{url}: {type(error).__name__}: {error}; is the vLLM server up?") from error
        if response.status_code == 404:
            needed = "--enable-scale-out" if path == _GENERATE else "VLLM_SERVER_DEV_MODE=1 in its environment"
            raise UserError(f"{url}: not found; start the vLLM server with {needed}")
        if response.status_code != 200:
            raise UserError(f"{url}: status {response.status_code}: {' '.join(response.text.split())[:500]}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise UserError(f"{url}: the answer is not JSON: {error}") from error
