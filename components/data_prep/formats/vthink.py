"""Our own rows, as `Sample` writes them."""

from __future__ import annotations

from .format import Format

VTHINK = Format(
    name="vthink", fits=lambda row: "media" in row and "question" in row, read=lambda row, _: [row], unique_ids=True
)
