import base64
import json

import pytest
from vthink.components.deployment.server.exchange import ApiError
from vthink.components.deployment.server.payload import read_base64, take_media

DATA = bytes(range(256)) * 8
BASE64 = base64.b64encode(DATA).decode()


def wrapped(text: str, ends: str) -> str:
    return ends.join(text[at : at + 76] for at in range(0, len(text), 76))


@pytest.mark.parametrize(
    "payload",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(DATA).decode(),
        wrapped(BASE64, "\n"),
        wrapped(BASE64, "\r\n"),
    ],
)
def test_every_usual_way_of_writing_base64_is_read_from_a_body_and_from_a_url(payload: str) -> None:
    body = json.dumps({"url": f"data:video/mp4;base64,{payload}", "text": "x"}).encode()
    text, payloads = take_media(body)
    [(name, media)] = payloads.items()
    assert json.loads(text) == {"url": name, "text": "x"}
    assert read_base64(media, 10_000) == DATA  # type: ignore[arg-type]
    assert read_base64(payload, 10_000) == DATA


def test_escaped_slashes_are_read() -> None:
    body = json.dumps({"url": f"data:video/mp4;base64,{BASE64}"}).replace("/", r"\/").encode()
    [media] = take_media(body)[1].values()
    assert read_base64(media, 10_000) == DATA  # type: ignore[arg-type]


@pytest.mark.parametrize("payload", ["@@@@", "A", "é" * 8, BASE64 + "=A"])
def test_what_is_no_base64_is_a_400(payload: str) -> None:
    with pytest.raises(ApiError, match="not base64") as caught:
        read_base64(payload, 10_000)
    assert caught.value.status == 400


def test_a_quotation_within_a_text_stays_where_it_is() -> None:
    body = json.dumps({"text": f'see "data:video/mp4;base64,{BASE64}" there'}).encode()
    assert take_media(body) == (body, {})


def test_too_much_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ApiError, match="larger than") as caught:
        read_base64(BASE64, len(DATA) - 1)
    assert caught.value.status == 413
