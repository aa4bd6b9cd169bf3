"""The media in a request's body: taken out of the JSON unread, so that megabytes of base64 are copied once."""

import base64
import re
import secrets

from .exchange import ApiError

_START = b'"data:'
_LEAST = 1024
_HEADER = re.compile(rb"data:(?:video|image|application)[a-zA-Z0-9+.;=\\/ _-]{0,120}?;base64,", re.IGNORECASE)
_ESCAPES = {rb"\/": b"/", rb"\n": b"", rb"\r": b"", rb"\t": b""}
_SPACE = b" \t\r\n\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

Media = str | memoryview  # a URL; or the base64 of a data URL as it stands in the body


def take_media(body: bytearray | bytes) -> tuple[bytes, dict[str, Media]]:
    """The body with each long data URL replaced by a name, and what stands for each name."""
    view, pieces, payloads = memoryview(body), list[bytes | memoryview](), dict[str, Media]()
    token, position, start = secrets.token_hex(8), 0, body.find(_START)
    while start >= 0:
        end = body.find(b'"', start + 1)
        if end < 0:
            break
        header = _HEADER.match(view[start + 1 : min(end, start + 200)])
        escaped = start > 0 and body[start - 1] == 0x5C  # a quotation within a text
        if header is not None and end - start > _LEAST and not escaped:
            payload = view[start + 1 + header.end() : end]
            same = [name for name, other in payloads.items() if other == payload]  # sent again with a later turn
            name = same[0] if same else f"data:{token};{len(payloads)}"
            payloads[name] = payload
            pieces += [view[position : start + 1], name.encode()]
            position = end
        start = body.find(_START, end)
    pieces.append(view[position:])
    return b"".join(pieces), payloads


def read_base64(payload: memoryview | str, max_bytes: int) -> bytes:
    """Bytes of base64, which may be url-safe, broken into lines, or without its padding. ApiError: 400 malformed, 413
    too large."""
    if len(payload) > max_bytes // 3 * 8 + 64:  # before anything is copied
        raise too_large(max_bytes)
    try:
        text = payload.encode("ascii") if isinstance(payload, str) else bytes(payload)
        for escape, character in _ESCAPES.items() if b"\\" in text else ():
            text = text.replace(escape, character)
        text = text.translate(_URL_SAFE, _SPACE)
        if len(text) // 4 * 3 - 2 > max_bytes:
            raise too_large(max_bytes)
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ApiError(400, "the data URL's payload is not base64", "messages") from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    if not data:
        raise ApiError(400, "the media is empty (0 bytes)", "messages")
    return data


def too_large(limit: int) -> ApiError:
    """The refusal of media beyond the limit."""
    return ApiError(413, f"the media is larger than {limit} bytes, the most this server takes", "messages")
