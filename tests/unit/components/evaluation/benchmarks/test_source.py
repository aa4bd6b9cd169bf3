import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from vthink.components.common.errors import UserError
from vthink.components.evaluation.benchmarks.folder import Source, unpack


def test_a_set_on_the_hub_that_cannot_be_reached_is_one_line(tmp_path: Path):
    code = (
        "from pathlib import Path; from vthink.components.evaluation.benchmarks.folder import Source; "
        "Source.open('hub', None, Path('.'), 'TencentARC/Video-Holmes')"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: the data set TencentARC/Video-Holmes cannot be fetched from the hub" in last
    with pytest.raises(UserError, match="a set of your own is not on the hub"):
        Source.open("hub", None, tmp_path)


def test_an_archive_is_unpacked_once_and_only_into_its_folder(tmp_path: Path):
    archive = tmp_path / "set" / "videos.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("clips/a.mp4", b"film")
        opened.writestr("../../evil.mp4", b"out")
        opened.writestr("/etc/evil.mp4", b"out")
    assert unpack(archive) == tmp_path / "set" / "videos"
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4")}
    assert names == {f"set/videos/{name}" for name in ("clips/a.mp4", "evil.mp4", "etc/evil.mp4")}
    (tmp_path / "set" / "videos" / "clips" / "a.mp4").unlink()
    unpack(archive)
    assert not (tmp_path / "set" / "videos" / "clips" / "a.mp4").exists()  # once
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UserError, match=r"broken.zip: cannot be unpacked \(File is not a zip file\)"):
        unpack(tmp_path / "broken.zip")
