"""The prompts of a curation: files beside this module, which a user can replace."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jinja2
import jinja2.sandbox

from ...common.errors import UserError

PROMPTS = Path(__file__).with_name("prompt_files")  # our prompts


@dataclass(frozen=True)
class Prompts:
    """The templates of a run, and what they are known by."""

    texts: dict[str, str]  # source by name
    _templates: dict[str, jinja2.Template] = field(repr=False)

    @classmethod
    def read(cls, folder: str | None) -> Self:
        """Ours, those replaced that ``folder`` has. Raises UserError: naming file and line of a template that cannot be
        used."""
        paths = {path.stem: path for path in sorted(PROMPTS.glob("*.jinja"))}
        if folder is not None:
            if not Path(folder).is_dir():
                raise UserError(f"curation.prompts: there is no folder {folder}")
            theirs = {path.stem: path for path in sorted(Path(folder).glob("*.jinja"))}
            if unknown := set(theirs) - set(paths):
                names = ", ".join(f"{name}.jinja" for name in paths)
                raise UserError(f"{theirs[min(unknown)]}: no step uses it; prompts are called {names}")
            paths |= theirs
        strict = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
        environment = jinja2.sandbox.SandboxedEnvironment(**strict)
        texts, templates = {}, {}
        for name, path in paths.items():
            try:
                texts[name] = path.read_text("utf-8")
                templates[name] = environment.from_string(texts[name])
                templates[name].render(_EXAMPLE[name])
            except UnicodeDecodeError:
                raise UserError(f"{path}: not UTF-8 text") from None
            except jinja2.TemplateSyntaxError as error:
                raise UserError(f"{path}:{error.lineno}: {error.message}") from None
            except Exception as error:  # a template can fail in any way
                raise UserError(f"{path}: {error} (there are: {', '.join(_EXAMPLE[name])})") from None
        return cls(texts, templates)

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """The start of each one's SHA-256, for the provenance of a row."""
        return {name: hashlib.sha256(self.texts[name].encode()).hexdigest()[:16] for name in names}

    def render(self, name: str, **values: Any) -> str:
        """The prompt ``name``."""
        return self._templates[name].render(**values).strip()


_SEGMENT = {"number": 1, "time": "00:01-00:03", "caption": "a caption"}
_EXAMPLE: dict[str, dict[str, Any]] = {
    "question": {"segments": [_SEGMENT], "min_segments": 2, "min_options": 4, "max_options": 6},
    "captions": {"question": "Which?", "answer": "A", "duration_s": 9.0},
    "trace": {"segments": [_SEGMENT], "question": "Which?", "answer": "A", "failed_captions": ["a caption"]},
    "judge": {"segments": [_SEGMENT], "question": "Which?"},
    "cot": {"question": "Which?"},
}
STEPS = {"hindsight": ("question", "captions", "trace", "judge"), "cot": ("cot",)}
