"""What a format of rows is, and what the fields of published rows mean, however they are spelt."""

import json
import posixpath
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.answers.grading import extract_letter

Row = Mapping[str, Any]  # a row as a file holds it, or the fields of a `Sample`


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a data set writes its rows; an entry in `registry.FORMATS`."""

    name: str  # its name, for ``--format`` and ``data.format``
    fits: Callable[[Row], bool]  # whether a row looks like one of it
    read: Callable[[Row, int], Iterable[Row | Exception]]
    """The samples of a row, as mappings (number of the row → ids where the format has none). Raises, or yields for one
    of several, a `ValueError` that says what is wrong."""
    unique_ids: bool = False
    """Whether an id that occurs twice is a mistake; else ids only count rows, and one that is taken gets a number."""


_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class BadRowError(ValueError):
    """What is wrong with a row."""


ROW_FAULTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What a format raises on a row that is not what it should be."""
_TYPES = {"multiplechoice": "multiple_choice", "mc": "multiple_choice", "mcq": "multiple_choice", "number": "numerical"}
_TYPES |= {"freeform": "free_form", "openended": "free_form"} | {t: t for t in ("numerical", "ocr", "regression")}
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[.):]\s*(.*)", re.DOTALL)
_WITH_UNIT = re.compile(
    r"[$€£]?\s*([-+−]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.?\d+)?(?<=\d)(?:[eE][-+]?\d+)?)\s*(?:[%°]|[^\W\d_]{1,12}[²³]?)?\.?"
)
"""A number, perhaps with a currency before it and a unit behind."""


def problem_type_of(text: Any) -> str:
    """Our name of a problem type, however it is spelt."""
    name = re.sub(r"[\s_-]", "", str(text or "")).lower()
    if name not in _TYPES:
        raise BadRowError(f"unknown problem_type '{str(text)[:40]}'; known: {', '.join(sorted(set(_TYPES.values())))}")
    return _TYPES[name]


def plain_options(options: Any) -> list[str]:
    """Texts of options that come as a list, with or without letters, as a mapping of letters, or as JSON text."""
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            raise BadRowError(f"options are no list: '{options[:40]}'") from None
    if isinstance(options, Mapping):
        by_letter = {str(letter).strip().upper(): text for letter, text in options.items() if text is not None}
        letters = list(string.ascii_uppercase[: len(by_letter)])
        if sorted(by_letter) != letters:
            raise BadRowError(f"options are lettered {', '.join(sorted(by_letter))[:60]}, not A, B, C and so on")
        options = [by_letter[letter] for letter in letters]
    if options is None:
        return []
    if not isinstance(options, list | tuple) or not all(isinstance(o, str | int | float) for o in options):
        raise BadRowError("options are no list of texts")
    texts = [str(option).strip() for option in options]
    lettered = [_LETTERED.fullmatch(text) for text in texts]
    if texts and all(m and m[1].upper() == letter for m, letter in zip(lettered, string.ascii_uppercase, strict=False)):
        return [match[2].strip() for match in lettered if match]
    return texts


def plain_answer(solution: Any, problem_type: str, options: Sequence[str]) -> str:
    """The answer as `Sample` has it: without tags; a letter; a number without thousands separators and unit."""
    if not isinstance(solution, str | int | float) or isinstance(solution, bool):
        raise BadRowError(f"the answer is no text but {type(solution).__name__}")
    tagged = _ANSWER.findall(str(solution))
    text = (tagged[-1] if tagged else str(solution)).strip()
    if not text:
        raise BadRowError("the answer is empty")
    if problem_type == "multiple_choice":
        return _letter(text, options)
    if problem_type in ("numerical", "regression"):
        match = _WITH_UNIT.fullmatch(text)
        if match is None:
            raise BadRowError(f"the answer of a {problem_type} question must be a number, not '{text[:40]}'")
        return match[1].replace(",", "").replace("−", "-")
    return text


def _letter(text: str, options: Sequence[str]) -> str:
    lettered_options = list(zip(string.ascii_uppercase, options, strict=False))
    same = [name for name, option in lettered_options if option.casefold() == text.casefold()]
    letter = extract_letter(text, len(options))
    if len(same) == 1 and (letter is None or len(text) > 1):
        return same[0]
    if letter is None:
        raise BadRowError(f"the answer '{text[:40]}' is neither a letter of the {len(options)} options nor one of them")
    lettered = _LETTERED.fullmatch(text)
    rest = lettered[2].strip().casefold() if lettered else ""
    named = [name for name, option in lettered_options if rest and option.casefold() == rest]
    if named and letter not in named:
        raise BadRowError(f"the answer '{text[:40]}' has the letter {letter} and the text of option {named[0]}")
    return letter


def media_kind(data_type: Any, path: str) -> str:
    """``video`` or ``image``, as the row says or, where it does not, as the file's name does."""
    named = "image" if posixpath.splitext(path)[1].lower() in _IMAGE_SUFFIXES else "video"
    return str(data_type or "").strip().lower() or named


def first_folder(path: str) -> str:
    """The first folder of a relative path; empty where there is none."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return parts[0] if len(parts) > 1 else ""
