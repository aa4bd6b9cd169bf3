"""What the tests of rollouts in vLLM share: tiny models, clips from real files, and a vLLM, played or real.

The normal suite runs them against the played vLLM (`tests.fakes.played_vllm`); `make test-vllm` has an environment with
the real one, and runs them against both.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from vthink.components.common.model.chat import ChatEncoder
from vthink.components.common.model.config import TinyModelConfig
from vthink.components.common.model.load import tokens_per_second
from vthink.components.common.model.tiny import build_tiny
from vthink.components.data_prep.world.synthesize import write_mp4
from vthink.components.grpo.vllm.colocated import ColocatedVLLM
from vthink.components.grpo.vllm.engine import VLLMEngine
from vthink.components.grpo.vllm.server import VLLMServers
from vthink.components.grpo.vllm.weights import PolicyWeights
from vthink.tests.fakes.played_vllm import play, played_server
from vthink.tests.vllm.subject import LENGTH, VIDEOS, Item, Subject

IS_INSTALLED = importlib.util.find_spec("vllm") is not None
PARTS = ["played", "real"] if IS_INSTALLED else ["played"]
collect_ignore = [] if IS_INSTALLED else ["real"]
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
SERVE = [
    "--dtype=float32", "--enforce-eager", "--enable-scale-out", "--no-mm-device-do-normalize", "--max-num-seqs=16",
    f"--max-model-len={LENGTH}", "--logprobs-mode=raw_logprobs", "--served-model-name=policy",
]  # fmt: skip


@pytest.fixture(scope="session", params=list(VIDEOS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def policy(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatEncoder]:
    """An untrained model with heads of 32, the smallest that vLLM's CPU kernels take, and its encoder."""
    video = VIDEOS[family]
    tiny = TinyModelConfig(family=family, num_heads=2, initializer_range=0.08)  # type: ignore[arg-type]
    model, processor = build_tiny(tiny, video, 0)
    folder = tmp_path_factory.mktemp(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.name_or_path = str(folder)
    return model.eval(), ChatEncoder(processor, "compact/1", video, tokens_per_second(model))


@pytest.fixture(scope="session")
def items(family: str, policy: tuple[Any, ChatEncoder], files: list[Path]) -> list[Item]:
    """48 questions about as many files."""
    video, encoder = VIDEOS[family], policy[1]
    return [Item.read(path, video, encoder) for path in files]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 videos of a moving square, of different lengths and sizes, and 24 stills.

    The frames are square: so small a budget of pixels would resize others once more when they come back.
    """
    folder, random, paths = tmp_path_factory.mktemp("files"), np.random.default_rng(0), []
    for number in range(24):
        side = 64 if number % 2 else 96
        count = 8 + number % 9
        frames = random.integers(0, 96, (count, side, side, 3), dtype=np.uint8)
        for t in range(count):
            left = (number + t * (1 + number % 4)) % (side - 16)
            frames[t, 8 : 8 + 16 + number, left : left + 16] = random.integers(128, 256, 3)
        path = folder / f"{number:02d}.mp4"
        write_mp4(path, frames, fps=4 + number % 3)
        still = folder / f"{number:02d}.png"
        Image.fromarray(frames[0]).save(still)
        paths += [path, still]
    return paths


@pytest.fixture(scope="session", params=[f"{part}-{mode}" for part in PARTS for mode in ("colocate", "server")])
def subject(
    request: pytest.FixtureRequest, policy: tuple[Any, ChatEncoder], tmp_path_factory: Any
) -> Iterator[Subject]:
    """A vLLM of one kind, started as training starts it."""
    part, mode = request.param.split("-")
    model, encoder = policy
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        AcceleratorState._reset_state(reset_partial_state=True)
        weights = PolicyWeights(model, Accelerator(cpu=True))
        for name, value in ENGINE.items():
            environment.setenv(name, value)
        if part == "played":
            play(environment)
        urls: list[str] = []
        vllm: Any
        if mode == "server":
            log = tmp_path_factory.mktemp("log") / "vllm.log"
            serve = (
                played_server(model.name_or_path) if part == "played" else real_server(model.name_or_path, SERVE, log)
            )
            urls = [stack.enter_context(serve)]
            vllm = VLLMServers(urls, weights, None)
        else:
            vllm = start_colocated(weights)
            stack.callback(stop_colocated, vllm)
        import torch

        yield Subject(part, mode, model, encoder, VLLMEngine(vllm, encoder, torch.float32), urls)


def start_colocated(weights: PolicyWeights, **changes: Any) -> ColocatedVLLM:
    arguments = {"dtype": "float32", "max_model_len": LENGTH, "max_num_batched_tokens": 4096, "max_num_seqs": 16}
    vllm = ColocatedVLLM(weights, True, **(arguments | {"logprobs_mode": "raw_logprobs"} | changes))
    forget_ranks()
    return vllm


def forget_ranks() -> None:
    """What a colocated vLLM sets for its own start would make the next trainer in this process one of several."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def stop_colocated(vllm: ColocatedVLLM) -> None:
    """End an engine: a process can hold one at a time."""
    del vllm._engine
    gc.collect()


@contextlib.contextmanager
def real_server(folder: str, arguments: list[str], log: Path) -> Iterator[str]:
    """A running ``vllm serve``: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", folder, f"--port={port}", "--host=127.0.0.1"]
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 300
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments], env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"}, stdout=output, stderr=output
        )
        try:
            while True:
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < until, log.read_text()[-4000:]
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)
