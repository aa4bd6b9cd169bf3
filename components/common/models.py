"""Models: a tiny one built from a configuration, one from a hub, a folder or S3; loading with all that serving needs.

A model folder is the flat Hugging Face layout (safetensors, config, tokenizer, processor, chat template) plus
``vthink.json``: the prompt template, the video sampling and the lineage that the model was trained with. Nothing is
ever unpickled, and no code from a model folder runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .chat import ChatEncoder
from .config import ModelConfig, TinyModelConfig, VideoConfig
from .storage import Storage, fingerprint, join

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""Supported ``model_type`` values."""
CARD = "vthink.json"
_WEIGHTS_THAT_RUN_CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".msgpack", ".h5")


class ModelError(ValueError):
    """A model that cannot be used, with the reason and what to do."""


# -- the tiny model ---------------------------------------------------------------------------------------------------

_CHAT_TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

_SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_TAGS = [f"<{slash}{tag}>" for tag in ("think", "answer", "time", "caption") for slash in ("", "/")]
_WORDS = [
    "the",
    "a",
    "an",
    "in",
    "of",
    "is",
    "are",
    "at",
    "to",
    "and",
    "then",
    "it",
    "its",
    "how",
    "many",
    "what",
    "which",
    "does",
    "do",
    "did",
    "was",
    "were",
    "there",
    "from",
    "with",
    "for",
    "on",
    "first",
    "last",
    "second",
    "before",
    "after",
    "than",
    "until",
    "while",
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "black",
    "purple",
    "orange",
    "square",
    "circle",
    "triangle",
    "shape",
    "shapes",
    "digit",
    "digits",
    "number",
    "colour",
    "color",
    "moves",
    "move",
    "moved",
    "moving",
    "left",
    "right",
    "up",
    "down",
    "appears",
    "appear",
    "appeared",
    "stays",
    "stay",
    "visible",
    "shown",
    "seen",
    "screen",
    "image",
    "video",
    "picture",
    "clip",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "zero",
    "order",
    "fast",
    "slow",
    "speed",
    "pixels",
    "pixel",
    "per",
    "seconds",
    "second",
    "long",
    "time",
    "duration",
    "describe",
    "happens",
    "happen",
    "read",
    "direction",
    "starts",
    "start",
    "ends",
    "end",
    "changes",
    "change",
    "into",
    "becomes",
    "so",
    "answer",
    "A",
    "B",
    "C",
    "D",
    "E",
    "F",
    "user",
    "assistant",
    "system",
]


def _tiny_tokenizer() -> Any:
    """A byte-level tokenizer in which the demo's words and MM:SS times are single tokens and any text is possible."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\d\d:\d\d| ?[^\W\d]+|\d|\s+(?=\S)|\s+| ?[^\w\s]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    times = [f"{s // 60:02d}:{s % 60:02d}" for s in range(32)]
    corpus = [form for word in [*_WORDS, *times] for form in (word, f" {word}", word.capitalize(), f" {word}")]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL_TOKENS[3:],
        model_max_length=32768,
    )


def _tiny_processor(config: TinyModelConfig, video: VideoConfig) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    patch = video.size_multiple // 2
    size = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels}
    images = Qwen2VLImageProcessor(size=dict(size), patch_size=patch, merge_size=2)
    kwargs: dict[str, Any] = {
        "size": dict(size),
        "patch_size": patch,
        "merge_size": 2,
        "do_sample_frames": False,
    }
    if config.family == "qwen2_5_vl":
        videos = Qwen2VLVideoProcessor(**kwargs, cap_pixels_per_frame=False)
        processor_class = Qwen2_5_VLProcessor
    else:
        videos = Qwen3VLVideoProcessor(**kwargs)
        processor_class = Qwen3VLProcessor
    return processor_class(
        image_processor=images,
        tokenizer=_tiny_tokenizer(),
        video_processor=videos,
        chat_template=_CHAT_TEMPLATE,
    )


def build_tiny(config: TinyModelConfig, video: VideoConfig, seed: int) -> tuple[Any, Any]:
    """A randomly initialised small model of a real architecture, and its processor.

    Returns:
        (model in float32, processor). The same arguments give the same weights.
    """
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    processor = _tiny_processor(config, video)
    tokenizer = processor.tokenizer
    head_dim = config.hidden_size // config.num_heads
    quarter = head_dim // 8 * 2  # M-RoPE: about a quarter of the rotary pairs for time, the rest for height and width
    sections = [
        quarter,
        (head_dim // 2 - quarter) // 2,
        head_dim // 2 - quarter - (head_dim // 2 - quarter) // 2,
    ]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    text: dict[str, Any] = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 3,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": config.initializer_range,
        "rope_parameters": rope,
    }
    vision: dict[str, Any] = {
        "depth": config.num_vision_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 2,
        "num_heads": config.num_heads,
        "out_hidden_size": config.hidden_size,
        "patch_size": video.size_multiple // 2,
        "spatial_merge_size": 2,
        "initializer_range": config.initializer_range,
    }
    ids = {
        "image_token_id": processor.image_token_id,
        "video_token_id": processor.video_token_id,
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    torch.manual_seed(seed)
    if config.family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [config.num_vision_layers - 1], "tokens_per_second": 1}
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
        )
    else:
        text["head_dim"] = head_dim
        rope["mrope_interleaved"] = True
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False)
        )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.float(), processor


# -- folders ----------------------------------------------------------------------------------------------------------


def write_card(folder: Path, prompt: str, video: VideoConfig, lineage: dict[str, Any]) -> None:
    """Write ``vthink.json``: what inference must do to see what training saw, and where the model came from."""
    card = {"prompt": prompt, "video": video.model_dump(mode="json"), "lineage": lineage}
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that is not a supported model in safetensors.

    Raises:
        ModelError: naming the file or the setting, and what to do.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder}: no config.json; expected a Hugging Face model folder")
    try:
        config = json.loads(config_path.read_text())
        family = config.get("model_type")
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{config_path}: not a JSON object ({error})") from error
    if family not in FAMILIES:
        raise ModelError(f"{config_path}: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    if "auto_map" in config:
        raise ModelError(
            f"{config_path}: asks for code of its own (auto_map); code from a model folder never runs here"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _WEIGHTS_THAT_RUN_CODE)
        found = f" (found {', '.join(pickled)}, which can run code when read)" if pickled else ""
        raise ModelError(f"{folder}: no *.safetensors{found}; convert the weights to safetensors first")


def _copy_safe(source: Path, target: Path) -> None:
    """Copy what inference needs from a model folder, leaving out pickles, code and training state."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS_THAT_RUN_CODE and path.stat().st_size > 0:
            if path.name.startswith((".", "_COMPLETE", "optimizer", "training_args")):
                continue
            shutil.copyfile(path, target / path.name)


def ensure_base_model(storage: Storage, config: ModelConfig, video: VideoConfig, wait_s: float | None = None) -> str:
    """Bring the base model into the store, once, and return its prefix.

    The prefix is named by the contents of the configuration, so every stage that asks gets the same bytes.

    Args:
        storage: the store.
        config: which model.
        video: how its videos become frames.
        wait_s: somebody else brings it; wait so long for that. Two that bring it at once would each find the other's
            half.

    Returns:
        ``s3://…/models/<fingerprint>/``, complete.

    Raises:
        ModelError: unsupported, unsafe or unreachable model, or nobody brought it in time.
    """
    tiny = config.tiny.model_dump() | {"seed": config.seed} if config.name == "tiny" else None
    key = fingerprint("base-model", config.name, config.revision, config.prompt, tiny, video.model_dump(mode="json"))
    prefix = join(storage.config.root_uri, "models", key) + "/"
    deadline = time.monotonic() + (wait_s or 0.0)
    while not (complete := storage.is_complete(prefix)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if complete:
        return prefix
    if wait_s is not None:
        raise ModelError(f"{prefix}: the first process did not bring the base model within {wait_s:g} s; see its log")
    with tempfile.TemporaryDirectory(prefix="vthink-model-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        if config.name == "tiny":
            model, processor = build_tiny(config.tiny, video, config.seed)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        else:
            _copy_safe(_local_copy(storage, config, Path(scratch)), folder)
        check_folder(folder)
        lineage = {"base": config.name, "revision": config.revision, "fingerprint": key}
        write_card(folder, config.prompt, video, lineage)
        if not storage.is_complete(prefix):  # another run may have brought it meanwhile
            storage.upload_dir(folder, prefix)
    return prefix


def _local_copy(storage: Storage, config: ModelConfig, scratch: Path) -> Path:
    if config.name.startswith("s3://"):
        source = scratch / "source"
        prefix = config.name if config.name.endswith("/") else config.name + "/"
        objects = [o for o in storage.list(prefix) if "/" not in o.uri.removeprefix(prefix) and o.size]
        if not objects:
            raise ModelError(f"{prefix}: nothing there")
        source.mkdir()
        for item in objects:
            name = item.uri.removeprefix(prefix)
            if Path(name).suffix not in _WEIGHTS_THAT_RUN_CODE:
                storage.download_file(item.uri, source / name)
        return source
    if Path(config.name).is_dir():
        return Path(config.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                config.name,
                revision=config.revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "merges.txt", "vocab.json"],
                local_dir=scratch / "hub",
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelError(
            f"model '{config.name}' is neither a folder here nor reachable on the hub ({reason}); "
            "give a folder, an s3://…/ prefix, or the name of a model you can reach"
        ) from error


def fetch_model(storage: Storage, uri: str, cache_dir: Path) -> Path:
    """A local folder with the model at ``uri`` (an ``s3://…/`` prefix or a folder), downloaded once and verified."""
    if not uri.startswith("s3://"):
        return Path(uri)
    folder = cache_dir / "models" / fingerprint(uri)
    storage.download_dir(uri if uri.endswith("/") else uri + "/", folder)
    return folder


@dataclass(slots=True)
class LoadedModel:
    """A model ready to answer: weights, encoder and the settings it was trained with."""

    model: Any
    encoder: ChatEncoder
    video: VideoConfig
    prompt: str
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device


def pick_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the accelerator computes in it, else float32."""
    if dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of ``vthink.json``.

    Raises:
        ModelError: it is missing or malformed.
    """
    path = folder / CARD
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        card["video"] = VideoConfig.load(card["video"], source=str(path))
        card["prompt"] = str(card["prompt"])
        return card
    except FileNotFoundError:
        raise ModelError(f"{folder}: no {CARD}; bring the model in with `vthink` first") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: damaged ({error})") from error


class PatchEmbedding(torch.nn.Conv3d):
    """A convolution that is given one patch at a time, as large as its kernel: one matrix product for all patches.

    Same parameters, names and values (up to the order of additions) as the ``Conv3d`` with which the vision towers of
    Qwen2.5-VL and Qwen3-VL begin. PyTorch's convolution is slow at this: forward and backward of 1,024 patches take it
    2.5 times as long on a CPU, a fifth of a whole log-probability pass.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """``patches``: (N, channels, frames, height, width), of the kernel's size. Returns: (N, features, 1, 1, 1)."""
        product = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return product[..., None, None, None]


def embed_patches_by_product(model: torch.nn.Module) -> None:
    """Make a model's patch embedding a `PatchEmbedding`, in place."""
    for name, module in model.named_modules():
        if name.endswith("patch_embed.proj") and type(module) is torch.nn.Conv3d:
            module.__class__ = PatchEmbedding


def load_model(
    folder: Path, dtype: str = "auto", attention: str = "sdpa", device: torch.device | None = None
) -> LoadedModel:
    """Load a model folder.

    Raises:
        ModelError: see `check_folder`, or weights that do not fit the configuration.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    check_folder(folder)
    card = read_card(folder)
    device = device or pick_device()
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=pick_dtype(dtype, device),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from error
    missing = [k for k in info.get("missing_keys", ()) if not k.endswith("lm_head.weight")]
    if missing or info.get("mismatched_keys"):
        broken = sorted(str(k) for k in [*missing, *info.get("mismatched_keys", ())])
        raise ModelError(f"{folder}: weights missing or of another shape: {', '.join(broken[:5])}")
    embed_patches_by_product(model)
    encoder = ChatEncoder(processor, card["prompt"], card["video"], tokens_per_second(model))
    return LoadedModel(model.to(device).eval(), encoder, card["video"], card["prompt"], folder)


def tokens_per_second(model: Any) -> float:
    """M-RoPE positions per second of video; 0 for models that write the time as text (Qwen3-VL)."""
    return float(getattr(model.config.vision_config, "tokens_per_second", None) or 0.0)


def save_model(
    folder: Path,
    model: Any,
    processor: Any,
    card: dict[str, Any],
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a flat, servable folder: safetensors (shards of at most 5 GB), processor, chat template, `vthink.json`.

    Args:
        state_dict: the weights, where the model itself holds only a shard of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size="5GB")
    processor.save_pretrained(folder)
    write_card(folder, card["prompt"], card["video"], card.get("lineage", {}))


def iter_linear_names(model: Any) -> Iterator[str]:
    """Names of the language model's linear layers (targets for LoRA)."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "language_model" in name:
            yield name
