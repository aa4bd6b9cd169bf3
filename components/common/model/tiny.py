"""A small model of a real architecture, and its processor, for laptops and tests."""

from typing import Any

import torch

from ..compat.torchvision import declare_torchvision_operators
from ..video.config import VideoConfig
from .config import TinyModelConfig
from .families import FAMILIES

CHAT_TEMPLATE = """{%- for message in messages %}
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
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip

_TAGS = [f"<{slash}{tag}>" for tag in ("think", "answer", "time", "caption") for slash in ("", "/")]

_WORDS = """
the a an in of is are at to and then it its how many what which does do did was were there from with for on
first last second before after than until while red green blue yellow white black purple orange square circle
triangle shape shapes digit digits number colour color moves move moved moving left right up down appears appear
appeared stays stay visible shown seen screen image video picture clip one two three four five six seven eight
nine ten zero order fast slow speed pixels pixel per seconds second long time duration describe happens happen
read direction starts start ends end changes change into becomes so answer A B C D E F user assistant system
"""
"""What the demo's questions and answers are made of."""


def _tiny_tokenizer() -> Any:
    """A byte-level tokenizer in which the demo's words and MM:SS times are single tokens and any text is possible."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\d\d:\d\d| ?[^\W\d]+|\d|\s+(?=\S)|\s+| ?[^\w\s]+")
    split = pre_tokenizers.Split(pieces, behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    times = [f"{s // 60:02d}:{s % 60:02d}" for s in range(32)]
    corpus = [form for word in [*_WORDS.split(), *times] for form in (word, f" {word}", word.capitalize(), f" {word}")]
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


def build_tiny(config: TinyModelConfig, video: VideoConfig, seed: int) -> tuple[Any, Any]:
    """A randomly initialised small model of a real architecture (float32), and its processor. The same arguments give
    the same weights."""
    declare_torchvision_operators()
    import transformers

    family = FAMILIES.get(config.family)
    pixels = {"shortest_edge": video.min_pixels, "longest_edge": video.max_pixels}
    layout: dict[str, Any] = {"size": pixels, "patch_size": video.size_multiple // 2, "merge_size": 2}
    make_video_processor = getattr(transformers, family.video_processor)
    processor = getattr(transformers, f"{family.classes}Processor")(
        video_processor=make_video_processor(**layout, do_sample_frames=False, **family.video_options),
        image_processor=transformers.Qwen2VLImageProcessor(**layout),
        tokenizer=_tiny_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer = processor.tokenizer
    head_dim = config.hidden_size // config.num_heads
    quarter = head_dim // 8 * 2  # M-RoPE: about a quarter of the rotary pairs for time, the rest for height and width
    rest = head_dim // 2 - quarter
    sections = [quarter, rest // 2, rest - rest // 2]
    common = {"hidden_size": config.hidden_size, "initializer_range": config.initializer_range}
    text: dict[str, Any] = {
        **common,
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "intermediate_size": config.hidden_size * 3,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
    }
    vision: dict[str, Any] = {
        **common,
        "depth": config.num_vision_layers,
        "intermediate_size": config.hidden_size * 2,
        "num_heads": config.num_heads,
        "out_hidden_size": config.hidden_size,
        "patch_size": video.size_multiple // 2,
        "spatial_merge_size": 2,
    }
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in marks.items()}
    family.complete_tiny(text, vision)
    make_config = getattr(transformers, f"{family.classes}Config")
    make_model = getattr(transformers, f"{family.classes}ForConditionalGeneration")
    torch.manual_seed(seed)
    model = make_model(make_config(text_config=text, vision_config=vision, **ids, tie_word_embeddings=False))
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    return model.float(), processor
