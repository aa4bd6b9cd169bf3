"""A vLLM server over HTTP: its settings, and completions of one request at a time."""

from typing import Any

import httpx

from ...common.errors import UserError
from .answer import Answer, server_answer
from .request import Request, server_payload

_GENERATE = "/inference/v1/generate"


class VLLMServer:
    """A server started by ``VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode
    processed_logprobs --weight-transfer-config '{"backend": "nccl"}'``."""

    def __init__(self, url: str, timeout_s: float, concurrency: int) -> None:
        """Args: ``timeout_s``: longest wait for one request; ``concurrency``: requests on their way at a time."""
        self._http = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=30.0, pool=None),
            transport=httpx.HTTPTransport(retries=3, limits=httpx.Limits(max_connections=concurrency)),
        )

    def settings(self) -> tuple[bool, str]:
        """Whether its model normalises pixels itself, and of which distribution it returns log-probabilities."""
        body = self._call("GET", "/server_info", params={"config_format": "json"})
        try:
            model = body["vllm_config"]["model_config"]
            return bool(model["multimodal_config"]["mm_device_do_normalize"]), str(model["logprobs_mode"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{self._http.base_url}: /server_info has another form: {error!r}") from error

    def generate(self, request: Request) -> Answer:
        """The completions of one request, unchecked."""
        body = self._call("POST", _GENERATE, json=server_payload(request))
        try:
            return server_answer(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self._http.base_url}: {_GENERATE} answered in another form: {error!r}") from error

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON at ``path``.

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
            raise UserError(f"{url}: status {response.status_code}: {' '.join(response.text.split())[:300]}")
        try:
            return response.json()
        except ValueError as error:
            raise UserError(f"{url}: the answer is not JSON: {error}") from error
