"""What `vthink serve` and `ask` print for a person who only wants an answer."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.pipelines.cli.serve import how_to_ask, with_option


@pytest.mark.parametrize(
    ("answer", "options", "shown"),
    [
        ("B", ["left", "right"], "B · right"),
        ("C", ["left", "right"], "C"),
        ("7", [], "7"),
        ("no answer", ["x"], "no answer"),
    ],
)
def test_an_answer_is_shown_with_its_option(answer: str, options: list[str], shown: str) -> None:
    assert with_option(answer, options) == shown


def test_a_server_says_where_page_endpoint_and_model_are() -> None:
    printed = how_to_ask(ServerConfig(port=8123))
    assert "page      http://127.0.0.1:8123 " in printed
    assert f"endpoint  http://127.0.0.1:8123/v1, model {ServerConfig().model_name}" in printed
    assert "http://[::1]:8080/v1" in how_to_ask(ServerConfig(host="::1", port=8080))


def test_the_curl_that_is_printed_sends_the_clip_as_a_request(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(bytes(range(256)) * 40)
    printed = how_to_ask(ServerConfig())
    line = re.search(r"^curl +(echo .*) \| curl ", printed, re.MULTILINE)
    assert line is not None
    done = subprocess.run(["bash", "-c", line[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    body = json.loads(done.stdout)
    video, text = body["messages"][0]["content"]
    sent = video["video_url"]["url"].removeprefix("data:video/mp4;base64,")
    assert base64.b64decode(sent) == (tmp_path / "clip.mp4").read_bytes()
    assert text == {"type": "text", "text": "What happens?"}
    assert body["model"] == ServerConfig().model_name
