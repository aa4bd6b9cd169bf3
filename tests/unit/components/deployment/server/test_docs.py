"""The page at `/docs`, and its examples, which are those of the README: each is run."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from vthink.components.deployment.config import ServerConfig
from vthink.components.deployment.server.serve import api_description
from vthink.tests.fakes.model_server import ANSWER, Running

RUN = {
    "curl": ["bash", "example"],
    "Python": [sys.executable, "example"],
    "JavaScript": ["node", "--input-type=module", "-"],
}
README = Path(__file__).parents[5] / "components/deployment/README.md"


def examples(page: str) -> dict[str, str]:
    found = re.findall(r"<h2>(\w+)</h2>\n<pre>\n(.*?)</pre>", page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def test_the_api_is_described_at_docs_with_examples_for_this_server(server: Running) -> None:
    response = httpx.get(f"{server.url}/docs", trust_env=False)
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert set(examples(response.text)) == set(RUN)
    assert f"{server.url}/v1/chat/completions" in response.text
    hostile = api_description(ServerConfig(), '"><script>')
    assert "<script>" not in hostile


@pytest.mark.parametrize("language", RUN)
def test_an_example_gets_an_answer(language: str, server: Running, video: Path, tmp_path: Path) -> None:
    program = RUN[language][0]
    if shutil.which(program) is None or (language == "curl" and shutil.which("curl") is None):
        pytest.skip(f"{program} is not installed")
    text = examples(httpx.get(f"{server.url}/docs", trust_env=False).text)[language]
    shutil.copy(video, tmp_path / "clip.mp4")
    (tmp_path / "example").write_text(text)
    done = subprocess.run(
        RUN[language], cwd=tmp_path, input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ANSWER.split("<answer>")[1] in done.stdout


def test_the_readme_has_the_same_examples() -> None:
    page = api_description(ServerConfig(), "127.0.0.1:8080")
    readme = README.read_text("utf-8")
    for name, text in examples(page).items():
        assert text in readme, name
