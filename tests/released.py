"""Definitions that others release and tests hold our objects to: CRDs, and KFP's API. ``make crds`` fetches them.

``released.txt`` has a line for each: SHA-256, name, and place (repository, tag or commit, path). They come from GitHub,
or with ``--from`` from a folder or an address that has them under the same names (a mirror).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / ".vthink" / "released"
"""Where tests look for them; ``VTHINK_CRDS`` and ``VTHINK_KFP_API`` name other places."""
GITHUB = "https://raw.githubusercontent.com"
KFP_API = "kfp_v2beta1.swagger.json"


class Released(NamedTuple):
    """A line of the table."""

    sha256: str
    name: str
    place: str


TABLE = Path(__file__).with_suffix(".txt")


def table(path: Path = TABLE) -> list[Released]:
    return [Released(*line.split()) for line in path.read_text().splitlines() if line]


def fetch(entry: Released, source: str | None, folder: Path) -> str | None:
    """Put one file into the folder; what is wrong with it, where something is. A file that is there is kept."""
    target = folder / entry.name
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == entry.sha256:
        return None
    url = f"{source.rstrip('/')}/{entry.name}" if source else f"{GITHUB}/{entry.place}"
    try:
        if "://" in url:
            with urllib.request.urlopen(url, timeout=60) as answer:
                data = answer.read()
        else:
            data = Path(url).read_bytes()
    except (OSError, urllib.error.URLError) as error:
        return f"{url}: {error}"
    if (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:
        return f"{url}: has SHA-256 {digest[:12]}…, not {entry.sha256[:12]}…: another version than {entry.place}"
    folder.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".part").write_bytes(data)
    target.with_suffix(".part").rename(target)
    return None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", help="folder or address instead of GitHub")
    parser.add_argument("--to", type=Path, default=FOLDER)
    parser.add_argument("--table", type=Path, default=TABLE)
    chosen = parser.parse_args(arguments)
    entries = table(chosen.table)
    with ThreadPoolExecutor(8) as pool:
        faults = [text for text in pool.map(lambda e: fetch(e, chosen.source, chosen.to), entries) if text]
    print(f"{len(entries) - len(faults)} of {len(entries)} files in {chosen.to}")
    for text in faults:
        print(f"make crds: {text}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
