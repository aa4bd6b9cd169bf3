"""A prompt as a request to vLLM: token ids, patches and sampling parameters, for its engine or its server."""

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...common.errors import UserError
from ...common.model.chat import ChatEncoder
from ...common.model.generation import Sampling
from ...common.model.prompt import TEXT, EncodedPrompt

_FINAL_ONLY = 2
"""vLLM's ``RequestOutputKind``: with its default, only the completion that ended last of ``n`` is returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionItem:
    """Neighbouring vision tokens of a prompt, and what vLLM's model takes to compute them."""

    modality: Literal["video", "image"]
    offset: int  # position of the first of the tokens in the prompt
    length: int  # number of tokens
    patches: torch.Tensor  # (N, D)
    grid_thw: torch.Tensor  # (3,) patches along time, height, width; N = t·h·w
    seconds: float | None  # seconds that a temporal patch spans; None where positions do not depend on it
    key: str  # what vLLM caches the features under

    def fields(self) -> dict[str, torch.Tensor]:
        """The model's keyword arguments: patches first, the others small and used on the CPU."""
        suffix = "_videos" if self.modality == "video" else ""
        fields = {f"pixel_values{suffix}": self.patches, f"{self.modality}_grid_thw": self.grid_thw}
        if self.seconds is not None:
            # vLLM multiplies by it and rounds down; float32 would now and then end one position lower.
            fields["second_per_grid_ts"] = torch.tensor(self.seconds, dtype=torch.float64)
        return fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to complete ``n`` times."""

    token_ids: list[int]  # the prompt with its placeholders expanded: one per vision token
    items: list[VisionItem]
    sampling: dict[str, Any]  # arguments of vLLM's ``SamplingParams``
    cache_salt: str


def make_request(
    prompt: EncodedPrompt, encoder: ChatEncoder, sampling: Sampling, n: int, key: int, salt: str, dtype: torch.dtype
) -> Request:
    """The request by which vLLM completes exactly ``prompt``.

    Args:
        key: with ``sampling.seed`` it determines the completions.
        salt: names the weights; nothing cached under another salt is used.
        dtype: of the patches sent: the policy's, whose vision tower rounds them to it in any case, or uint8, as they
            were before normalisation, for a vLLM that normalises.

    Raises:
        BlindInputError: placeholders and pixels do not match."""
    encoder.check_sighted(prompt)
    return Request(
        token_ids=prompt.input_ids.tolist(),
        items=_vision_items(prompt, encoder, salt, dtype),
        sampling={
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # vLLM adds the number of the completion to the seed, so seeds of prompts must lie far apart.
            "seed": zlib.crc32(f"{sampling.seed}/{key}".encode()) & 0x7FFFFFFF,
            "max_tokens": sampling.max_new_tokens,
            # End of turn and nothing else ends a completion: generation_config.json may name more tokens.
            "ignore_eos": True,
            "stop_token_ids": [encoder.eos_token_id],
            "logit_bias": dict.fromkeys(encoder.vision_token_ids, -100.0),
            "logprobs": 0,
            "detokenize": False,
        },
        cache_salt=salt,
    )


def _vision_items(prompt: EncodedPrompt, encoder: ChatEncoder, salt: str, dtype: torch.dtype) -> list[VisionItem]:
    vision = (prompt.mm_token_type_ids != TEXT).tolist()
    starts = [i for i, here in enumerate(vision) if here and not (i and vision[i - 1])]
    patches = prompt.pixel_values.to(dtype) if dtype != torch.uint8 else _bytes(prompt, encoder)
    t, h, w = (int(size) for size in prompt.grid_thw)
    if prompt.kind == "video" and not encoder.family.time_in_text:
        runs, modality, seconds = [(t, h, w)], "video", prompt.second_per_grid_s
    else:
        runs, modality, seconds = [(1, h, w)] * t, "image", None
    items, first = [], 0
    for start, grid in zip(starts, runs, strict=True):
        count = grid[0] * grid[1] * grid[2]
        part = patches[first : first + count].contiguous()
        digest = hashlib.sha256(f"{modality}/{grid}/{seconds}/{dtype}/".encode())
        digest.update(part.view(torch.uint8).numpy().data)
        items.append(
            VisionItem(
                modality=modality,  # type: ignore[arg-type]
                offset=start,
                length=count // encoder.merge**2,
                patches=part,
                grid_thw=torch.tensor(grid),
                seconds=seconds,
                key=f"{salt}-{digest.hexdigest()}",
            )
        )
        first += count
    return items


def _bytes(prompt: EncodedPrompt, encoder: ChatEncoder) -> torch.Tensor:
    """(N, D) uint8: the patches before normalisation, which rounding recovers exactly."""
    if encoder.normalisation["video"] != encoder.normalisation["image"]:
        raise UserError(
            "vLLM normalises videos like images, but this model's processors differ; "
            "start vLLM with mm_device_do_normalize off"
        )
    mean, std = (torch.tensor(values).view(1, -1, 1) * 255 for values in encoder.normalisation[prompt.kind])
    channels = prompt.pixel_values.view(len(prompt.pixel_values), mean.shape[1], -1)
    return (channels * std + mean).round().clamp(0, 255).to(torch.uint8).view_as(prompt.pixel_values)


def _vllm_item(item: VisionItem) -> Any:
    """``item`` as vLLM's ``MultiModalKwargsItem``: patches are concatenated in a batch, the other fields stacked."""
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
    )

    flat = MultiModalFlatField(slices=[slice(0, len(item.patches))])
    stacked = MultiModalBatchedField(keep_on_cpu=True)
    return MultiModalKwargsItem(
        {
            name: MultiModalFieldElem(data=tensor, field=flat if name.startswith("pixel_values") else stacked)
            for name, tensor in item.fields().items()
        }
    )


def engine_request(request: Request) -> tuple[Any, Any]:
    """A request as ``vllm.inputs.MultiModalInput`` and ``vllm.SamplingParams``, for the engine in this process."""
    from vllm import SamplingParams
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
    from vllm.sampling_params import RequestOutputKind

    modality = request.items[0].modality
    prompt = mm_input(
        request.token_ids,
        MultiModalKwargsItems({modality: [_vllm_item(item) for item in request.items]}),
        {modality: [item.key for item in request.items]},
        {modality: [PlaceholderRange(offset=item.offset, length=item.length) for item in request.items]},
        cache_salt=request.cache_salt,
    )
    return prompt, SamplingParams(**request.sampling, output_kind=RequestOutputKind(_FINAL_ONLY))


def server_payload(request: Request) -> dict[str, Any]:
    """A request as the JSON body of ``POST /inference/v1/generate``."""
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

    modality = request.items[0].modality
    return {
        "token_ids": request.token_ids,
        "features": {
            "mm_hashes": {modality: [item.key for item in request.items]},
            "mm_placeholders": {modality: [{"offset": i.offset, "length": i.length} for i in request.items]},
            "kwargs_data": {modality: [encode_mm_kwargs_item(_vllm_item(item)) for item in request.items]},
        },
        "sampling_params": request.sampling | {"output_kind": _FINAL_ONLY},
        "cache_salt": request.cache_salt,
        "return_token_ids": True,
        "stream": False,
    }
