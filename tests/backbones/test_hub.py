"""What the hub answers, said in one line each: a small server plays the hub, the client is the real one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

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
    "some/incomplete": ("vae/config.json is not in the repository; name another",),
    "some/broken": ("out of reach (Bad request", "connect to the network"),
    "nobody/nothing": ("neither a folder here nor a repository", "hf auth login"),
    "not a name": ("neither a folder here nor a hub id",),
}


REVISION = "0" * 40
BASE = "black-forest-labs/FLUX.1-Krea-dev"
"""A base that the hub has whole, in the folder `Hub.base`."""


class Hub(BaseHTTPRequestHandler):
    base = Path()
    asked: ClassVar[set[str]] = set()
    """Files of the base that were asked for."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        status, code, body = self._look_up()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _look_up(self) -> tuple[int, str | None, bytes]:
        files = [path for path in self.base.rglob("*") if path.is_file()]
        if self.path.startswith(f"/api/models/{BASE}/revision/"):
            siblings = [{"rfilename": str(path.relative_to(self.base))} for path in files]
            information = {"id": BASE, "sha": REVISION, "siblings": siblings}
            return 200, None, json.dumps(information).encode()
        if self.path.startswith(f"/api/models/{BASE}/tree/"):
            tree = [
                {
                    "type": "file",
                    "path": str(path.relative_to(self.base)),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in files
            ]
            return 200, None, json.dumps(tree).encode()
        for revision in ("main", REVISION):
            prefix = f"/{BASE}/resolve/{revision}/"
            if self.path.startswith(prefix):
                name = unquote(self.path.removeprefix(prefix))
                if not (self.base / name).is_file():
                    return 404, "EntryNotFound", b""
                self.asked.add(name)
                return 200, None, (self.base / name).read_bytes()
        status, code = ANSWERS.get(self.path, (404, "RepoNotFound"))
        return status, code, FILE if status == 200 else b""

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
    said, _ = ask([*REFUSED, "some/open"], HF_ENDPOINT=hub_s_address, HF_HUB_CACHE=str(tmp_path))
    assert said.pop("some/open") == FILE.decode()
    assert said.keys() == REFUSED.keys()
    for repository, words in REFUSED.items():
        assert said[repository].startswith(f"{repository}: ")
        assert "\n" not in said[repository]
        for word in words:
            assert word in said[repository]


def test_offline_the_cache_is_enough_and_what_is_not_in_it_is_named(hub_s_address, tmp_path):
    settings = {"HF_ENDPOINT": hub_s_address, "HF_HUB_CACHE": str(tmp_path)}
    ask(["some/open"], **settings)
    said, _ = ask(["some/open", "some/other"], HF_HUB_OFFLINE="1", **settings)
    assert said["some/open"] == FILE.decode()
    assert "not in the hub's cache" in said["some/other"]
    assert "HF_HUB_OFFLINE" in said["some/other"]


FETCH = """
import logging, sys
from allosr2.backbones.hub import fetch_part, reach
from allosr2.errors import ModelError
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
for part in ("vae", "transformer"):
    print(fetch_part(sys.argv[1], part))
try:
    reach(sys.argv[1], "allosr2.json")
except ModelError as error:
    print(error)
"""


def test_a_base_s_parts_and_nothing_else_come_and_serve_offline(
    hub_s_address, tiny_base, tmp_path, monkeypatch
):
    """The transformer in shards, as large ones are, for which diffusers alone would ask the hub again."""
    from diffusers import FluxTransformer2DModel
    from huggingface_hub import constants

    from allosr2.backbones.base import load_transformer, load_vae

    base, cache = tmp_path / "base", tmp_path / "cache"
    shutil.copytree(tiny_base / "vae", base / "vae")
    transformer = FluxTransformer2DModel.from_pretrained(tiny_base, subfolder="transformer")
    transformer.save_pretrained(base / "transformer", max_shard_size="40KB")
    for name in ("flux1-dev.safetensors", "text_encoder_2/model.safetensors", "vae/model.bin"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"gigabytes")
    monkeypatch.setattr(Hub, "base", base)
    runs = [
        subprocess.run(
            [sys.executable, "-c", FETCH, BASE],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ) | {"HF_ENDPOINT": hub_s_address, "HF_HUB_CACHE": str(cache)},
        )
        for _ in range(2)
    ]
    for done in runs:
        vae_folder, transformer_folder, refusal = done.stdout.splitlines()
        assert vae_folder == transformer_folder
        assert refusal == f"{BASE}: allosr2.json is not in the repository; name another"
    announced = [
        [line for line in done.stderr.splitlines() if "downloaded" in line] for done in runs
    ]
    assert len(announced[0]) == 1  # once a base, before its weights come
    assert "WARNING" in announced[0][0]
    assert "NON-COMMERCIAL" in announced[0][0]
    assert announced[1] == []
    wanted = {p.relative_to(base).as_posix() for p in base.glob("*/diffusion_pytorch_model*")}
    assert Hub.asked == wanted | {"vae/config.json", "transformer/config.json"}

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for load in (load_vae, load_transformer):
        expected = load(str(tiny_base)).state_dict()
        found = load(BASE).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (Path(transformer_folder) / "transformer" / min(wanted).rpartition("/")[2]).unlink()
    with pytest.raises(ModelError, match="not in the hub's cache"):
        load_transformer(BASE)


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
