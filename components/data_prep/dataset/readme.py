"""``README.md`` of a prepared set: the hub's data set card, from which `datasets.load_dataset` knows the files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from .... import __version__

_TEXT = """---
{header}---

# Prepared video questions

Made by vthink {version}. `rows` are the questions; `media_id` names the entry of `media`
that holds the frames, compressed, of the video or image that a question is about (or, where these would be larger,
the file itself). `card.json` counts what is here, `contamination.json` what training and evaluation shared.

{counts}
"""


def hub_readme(files: Iterable[str], splits: Sequence[str], counts: Mapping[str, int]) -> str:
    """The text. Its header names the files one by one: an attempt that was cut off may have left others."""
    configs: list[dict[str, Any]] = []
    for name in ("rows", "media"):
        paths = {split: sorted(file for file in files if file.startswith(f"{name}/{split}-")) for split in splits}
        data = [{"split": split, "path": path} for split, path in paths.items() if path]
        configs.append({"config_name": name, "data_files": data})
    configs[0]["default"] = True
    header = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = "\n".join(f"- {name}: {count}" for name, count in counts.items())
    return _TEXT.format(header=header, version=__version__, counts=lines)
