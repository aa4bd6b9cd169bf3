"""Lengths in tokens: of texts, on a sample of rows; of what is seen, from the resolutions of all files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ...common.errors import UserError
from ...common.html import blocks, page
from ...common.rows.sample import Sample
from ...common.video.config import VideoConfig
from ...common.video.frames import target_size
from ..dataset.data_card import DataCard

_CHARACTERS_PER_TOKEN = 4
CountTokens = Callable[[str], int]


def token_counter(path: Path) -> CountTokens:
    """Counts tokens with a ``tokenizer.json``, as every fast tokenizer of the hub has one.

    Raises:
        UserError: it is no such file, or the library that reads it is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("counting tokens needs the package tokenizers (it comes with transformers)") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises is a bare Exception
        raise UserError(f"{path}: not a tokenizer.json ({str(error)[:100]})") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def lengths(
    card: DataCard,
    video: VideoConfig,
    sampled: Mapping[str, Mapping[int, Sample]],
    most_sampled: int,
    count_tokens: CountTokens | None,
) -> Markup:
    """The section of the page.

    Args:
        card: of the set.
        video: how its frames were made.
        sampled: rows by split and place.
        most_sampled: rows of a split, at most.
        count_tokens: tokens of a text; None: estimated from its characters.
    """
    count = count_tokens or (lambda text: -(-len(text) // _CHARACTERS_PER_TOKEN))
    table = []
    for split, rows in sampled.items():
        texts = {
            "question and options": [count("\n".join((row.question, *row.options))) for row in rows.values()],
            "reasoning": [count(row.reasoning) for row in rows.values() if row.reasoning is not None],
        }
        table += [[split, what, *_quantiles(tokens), len(tokens)] for what, tokens in texts.items() if tokens]
    heads = ["split", "text", "median tokens", "95 %", "longest", "rows"]
    how = "counted" if count_tokens is not None else f"estimated as {_CHARACTERS_PER_TOKEN} characters each"
    shown = [blocks.table(heads, table), page.paragraph(f"Tokens of up to {most_sampled:,} rows of each split, {how}.")]
    if visual := visual_tokens(card.media.resolutions, video):
        tokens, files = np.array(visual).T
        low, high, mean = tokens.min(), tokens.max(), float((tokens * files).sum() / files.sum())
        frames = f"{video.num_frames} frames" if video.num_frames is not None else f"{video.fps:g} frames per second"
        text = f"Visual tokens of a video or image: {low:,.0f} to {high:,.0f}, {mean:,.0f} on average ({frames}"
        shown.append(page.paragraph(f"{text}, at most {video.max_pixels:,} pixels each)."))
    return page.joined(shown)


def visual_tokens(resolutions: Mapping[str, Mapping[str, int]], video: VideoConfig) -> list[tuple[float, int]]:
    """Visual tokens and number of files, for every resolution that the card names."""
    tokens = []
    for kind, counts in resolutions.items():
        frames = float(video.num_frames or video.max_frames) if kind == "video" else float(video.temporal_multiple)
        for name, files in counts.items():
            width, _, height = name.partition("x")
            if not (width.isdecimal() and height.isdecimal()):
                continue  # "other"
            shown_height, shown_width = target_size(int(height), int(width), video)
            patches = (shown_height // video.size_multiple) * (shown_width // video.size_multiple)
            tokens.append((frames / video.temporal_multiple * patches, files))
    return tokens


def _quantiles(lengths: Sequence[int]) -> list[int]:
    return [round(float(np.quantile(lengths, q))) for q in (0.5, 0.95, 1.0)]
