"""A decoded frame as a player shows it: turned and mirrored, stretched, and from high to standard dynamic range."""

from typing import Any

import numpy as np

from .clip import DecodeError
from .config import VideoConfig

HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer characteristics of high dynamic range by their number (ITU-T H.273, table 3)."""
HDR_PEAK = 10.0  # light that becomes white, in units of 100 cd/m²


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How its display matrix wants a frame shown: transposed, then flipped left to right, then upside down. DecodeError
    where it is to be turned by other than quarter turns, or sheared, which players do differently."""
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    transposed = max(abs(a), abs(d)) < max(abs(b), abs(c))
    kept, lost = ((c, b), (a, d)) if transposed else ((a, d), (b, c))
    if not all(kept) or max(map(abs, lost)) > 0.02 * max(map(abs, kept)):
        raise DecodeError("it is to be shown sheared, or turned by other than quarter turns (video.orientation=stored)")
    return transposed, kept[0] < 0, kept[1] < 0


def pixels_of(frame: Any, size: tuple[int, int], config: VideoConfig) -> np.ndarray:
    """The frame upright, in the size of ``size`` (height, width): (h, w, 3) uint8, RGB."""
    transposed, mirrored, upside_down = (False,) * 3 if config.orientation == "stored" else orientation(frame)
    if int(frame.color_trc) in HDR_TRANSFERS:
        height, width = size[::-1] if transposed else size
        pixels = _to_standard_range(frame, min(frame.height, 2 * height), min(frame.width, 2 * width))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    pixels = np.swapaxes(pixels, 0, 1) if transposed else pixels
    pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
    return resize(pixels[None], size)[0]


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic with antialiasing, on the CPU: the same bytes for the same pixels. (T, H, W, 3) → (T, h, w, 3)."""
    from PIL import Image

    if frames.shape[1:3] == size:
        return np.ascontiguousarray(frames)
    images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in images])


def _to_standard_range(frame: Any, height: int, width: int) -> np.ndarray:
    """HDR as zimg and FFmpeg show it: ``zscale=t=linear:npl=100:agamma=false, zscale=p=bt709,
    tonemap=hable:desat=0:peak=10, zscale=t=bt709:agamma=false``. ITU-R BT.2100 (PQ, HLG with its system gamma of 1.2 at
    1000 cd/m²), BT.2087 (colours to BT.709), J. Hable's curve on the largest of the three colours, BT.1886's gamma of
    2.4. (h, w, 3) uint8."""
    # Planar: to packed RGB swscale would give two neighbours one colour.
    signal = frame.reformat(width, height, format="gbrp16le", interpolation="AREA").to_ndarray()
    levels = np.linspace(0, 1, 65536, dtype=np.float64)
    if HDR_TRANSFERS[int(frame.color_trc)] == "pq":
        power = levels ** (1 / 78.84375)
        curve = 100 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light = curve.astype(np.float32)[signal]
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        curve = np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
        scene = curve.astype(np.float32)[signal]
        luminance = scene @ np.asarray([0.2627, 0.6780, 0.0593], np.float32)
        light = scene * (10 * np.maximum(luminance, 1e-6) ** 0.2)[..., None]
    to_bt709 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    light = np.maximum(light @ np.asarray(to_bt709, np.float32).T, 0)
    largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    light = np.clip(light * (_hable(largest) / _hable(np.asarray(HDR_PEAK, np.float32)) / largest), 0, 1)
    return np.round(255 * light ** (1 / 2.4)).astype(np.uint8)


def _hable(x: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    return (x * (x * a + b * c) + d * e) / (x * (x * a + b) + d * f) - e / f
