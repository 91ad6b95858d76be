"""What the hub answers, said in one line each: a small server plays the hub, the client is the real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from allosr2.backbones import hub
from allosr2.errors import ModelError

FILE = b'{"in_channels": 64}'

ANSWERS = {
    "/some/open/resolve/main/vae/config.json": (200, None),
    "/black-forest-labs/FLUX.1-dev/resolve/main/vae/config.json": (403, "GatedRepo"),
    "/some/incomplete/resolve/main/vae/config.json": (404, "EntryNotFound"),
    "/some/broken/resolve/main/vae/config.json": (400, None),
}
"""What is asked for: the status and the error code of the answer. Everything else is no repository."""

REFUSED = {
    "black-forest-labs/FLUX.1-dev": (
        "asks to accept a license",
        "NON-COMMERCIAL",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "hf auth login",
    ),
    "some/incomplete": ("vae/config.json is not in the repository", "diffusers layout"),
    "some/broken": ("out of reach (Bad request", "connect to the network"),
    "nobody/nothing": ("neither a folder here nor a repository", "hf auth login"),
    "not a name": ("neither a folder here nor a hub id",),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, code = ANSWERS.get(self.path, (404, "RepoNotFound"))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(FILE) if status == 200 else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if ANSWERS.get(self.path, (404, ""))[0] == 200:
            self.wfile.write(FILE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub_s_address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


PROGRAM = """
import json, logging, sys
from allosr2.backbones.hub import reach
from allosr2.errors import ModelError
log = logging.getLogger("allosr2")
log.setLevel(logging.INFO)
log.addHandler(logging.StreamHandler(sys.stderr))
said = {}
for repository in sys.argv[1:]:
    try:
        said[repository] = reach(repository, "vae/config.json").read_text()
    except ModelError as error:
        said[repository] = str(error)
print(json.dumps(said))
"""


def ask(repositories: list[str], **environment: str) -> tuple[dict[str, str], str]:
    """What reaching each repository gave, from a process that sees this environment; and its log."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *repositories],
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_each_answer_of_the_hub_is_one_line_that_says_what_to_do(hub_s_address, tmp_path):
    said, log = ask([*REFUSED, "some/open"], HF_ENDPOINT=hub_s_address, HF_HUB_CACHE=str(tmp_path))
    assert said.pop("some/open") == FILE.decode()
    assert said.keys() == REFUSED.keys()
    for repository, words in REFUSED.items():
        assert said[repository].startswith(f"{repository}: ")
        assert "\n" not in said[repository]
        for word in words:
            assert word in said[repository]
    (announced,) = [line for line in log.splitlines() if line.startswith("black-forest-labs")]
    assert "downloaded" in announced
    assert "NON-COMMERCIAL" in announced  # said before anything comes


def test_offline_the_cache_is_enough_and_what_is_not_in_it_is_named(hub_s_address, tmp_path):
    settings = {"HF_ENDPOINT": hub_s_address, "HF_HUB_CACHE": str(tmp_path)}
    ask(["some/open"], **settings)
    said, log = ask(["some/open", "some/other"], HF_HUB_OFFLINE="1", **settings)
    assert said["some/open"] == FILE.decode()
    assert "not in the hub's cache" in said["some/other"]
    assert "HF_HUB_OFFLINE" in said["some/other"]
    assert "some/open" not in log  # nothing is downloaded, so nothing is announced


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """A place in an offline cache where the files of `user/model` at its main revision lie."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--user--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v1").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir()
    return snapshot


@pytest.mark.parametrize("name", ["user/model", "user/model@v1"])
def test_a_model_comes_from_the_hub_by_name(cached, tiny_model, name):
    from allosr2 import AlloSR2

    shutil.copytree(tiny_model, cached)
    model, same = AlloSR2.from_pretrained(name), AlloSR2.from_pretrained(tiny_model)
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image), same(image))
    assert model.folder == cached
    with pytest.raises(ModelError, match=r"user/other: .* not in the hub's cache"):
        AlloSR2.from_pretrained("user/other")


def test_a_model_goes_to_the_hub_whole(tiny_model, tiny_base, tmp_path, monkeypatch):
    from allosr2 import AlloSR2
    from allosr2.model import copy_base

    class Api:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            assert (repository, private, exist_ok) == ("user/model", True, True)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> None:
            assert repo_id == "user/model"
            shutil.copytree(folder_path, tmp_path / "there")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(ModelError, match="which nobody else has"):
        AlloSR2.from_pretrained(tiny_model).push_to_hub("user/model", private=True)

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    copy_base(tiny_base, folder)
    config = json.loads((folder / "allosr2.json").read_text()) | {"base": "base"}
    (folder / "allosr2.json").write_text(json.dumps(config))
    model = AlloSR2.from_pretrained(folder)
    address = model.push_to_hub("user/model", private=True)
    assert address == "https://huggingface.co/user/model"
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AlloSR2.from_pretrained(tmp_path / "there")(image), model(image))
    assert (tmp_path / "there" / "README.md").read_text().startswith("---\n")


def test_a_hub_that_refuses_is_one_line(tmp_path, monkeypatch):
    class Api:
        def create_repo(self, *_: object, **__: object) -> None:
            raise OSError("401\nUnauthorized")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(ModelError, match=r"^user/model: .*\(401 Unauthorized\); log in"):
        hub.upload(tmp_path, "user/model", private=False)
