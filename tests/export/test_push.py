"""`harvest push` against a stand-in of the hub on this machine: what arrives, what never does, and refusals."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import harvest
from harvest.cli import main
from harvest.evaluation.card import make_card, split_of, write_card
from harvest.evaluation.result import Result
from harvest.export.push import _public
from harvest.interfaces import Example
from harvest.model.folder import load_model, save_model
from harvest.model.heads import HeadConfig, build_head
from harvest.model.video_text import ModelConfig, VideoTextModel

from .conftest import small_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of huggingface_hub

TOKEN = "hf_secretsecretsecret"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name; a status and message to refuse with, by the start of a path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, value: object = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_any(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        body = self.read_body()
        hub.asked.append(f"{self.command} {path}")
        for start, (status, message) in hub.refuse.items():
            if path.startswith(start):
                return self.answer({"error": message}, status)
        if not path.startswith(("/api/repos", "/api/models/", "/api/validate", "/user/", "/lfs/")):
            return self.answer({"error": "no such page"}, 404)
        if self.command != "PUT":
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repositories else 200
            is_private = asked.get("visibility") == "private" or asked.get("private") is True
            hub.repositories.setdefault(name, {"private": is_private, "files": {}})
            return self.answer({"url": f"{hub.url}/{name}", "error": "there is one"}, status)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            hub.blobs[parts[1]] = body
            return self.answer({})
        if path.endswith("/info/lfs/objects/batch"):
            upload = {"href": f"{hub.url}/lfs/"}
            objects = [
                {**one, "actions": {"upload": {"href": upload["href"] + one["oid"]}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        start = 2 if parts[0] == "api" else 0
        name = "/".join(parts[start : start + 2])
        repository = hub.repositories[name]
        if "preupload" in parts:
            mode = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": one["path"],
                    "uploadMode": mode[one["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "commit" in parts:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository["files"][value["path"]] = hub.blobs[value["oid"]]
            return self.answer({"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({"id": "user/name", "private": repository["private"], "siblings": []})

    do_GET = do_POST = do_PUT = do_HEAD = handle_any


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(video_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(video_model, tmp_path / "model"))


def pushed(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["push", *map(str, args)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and TOKEN not in out + err
    return code, out, err


def card_in(folder: Path, model: Path) -> Path:
    examples = [Example(id=str(i), video=f"{i}.mp4", texts=("a",)) for i in range(4)]
    result = Result(
        task="retrieval",
        mode="video",
        protocol="one sentence a clip",
        metrics={"text_to_video_r1": 0.375},
        counts={"clips": 4},
        missing={},
        settings={"num_frames": 4},
        resampled={"text_to_video_r1": torch.tensor([0.25, 0.5], dtype=torch.float64).repeat(100)},
    )
    split = split_of(examples, "my test set")
    about = {"source": "/secret/place", "command": "harvest evaluate /secret/place", "hardware": {}}
    write_card(folder, make_card(result, split, load_model(model)[0], **about), result)
    return folder


def test_a_model_and_its_card_arrive_and_nothing_else(folder: Path, hub: Hub, capsys) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["started_from"] = "/home/someone/models/clip-b16"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.safetensors").write_bytes(b"moments")
    card_in(folder / "card", folder)
    args = ("--licence", "apache-2.0", "--base-model", "openai/clip-vit-base-patch16", "--data", "panda-70m")
    args = (*args, "pictures of my own", "--card", folder / "card")  # which is found, too
    code, out, err = pushed(capsys, folder, "user/name", *args)
    assert code == 0, err
    assert f"{hub.url}/user/name" in out and "left out: card, checkpoints, optimizer.pt" in out
    files = hub.repositories["user/name"]["files"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"]) == {**config, "started_from": "clip-b16"}
    readme = files["README.md"].decode()
    assert readme.startswith("---\nbase_model: openai/clip-vit-base-patch16\nlibrary_name: harvest-video\n")
    for said in (
        "license: apache-2.0\n",
        "| recipe | harvest-b16 |",
        "| text to video r1 | retrieval | 37.5 % | 25.0 to 50.0 |",
        "Panda-70M; ",
        "terms: ",
        "- pictures of my own",
        'harvest.load("user/name")',
        f"sha256 {json.loads((folder / 'card' / 'card.json').read_text())['model']['fingerprint']}",
    ):
        assert said in readme, said
    assert readme.count("### ") == 1
    assert "secret" not in readme and "someone" not in readme and str(folder) not in readme


@pytest.mark.parametrize("has_texts", [True, False])
def test_what_arrived_opens_as_its_card_says(
    has_texts: bool, clips: list[Path], tmp_path: Path, hub: Hub, capsys, monkeypatch
) -> None:
    model, tokenizer = small_model()
    if not has_texts:
        model = VideoTextModel(ModelConfig(video=model.config.video, text=None)).eval()
    head = build_head(HeadConfig("linear", ("left", "right"), width=48))
    save_model(tmp_path / "model", model, tokenizer if has_texts else None, head=head)
    assert pushed(capsys, tmp_path / "model", "user/name")[0] == 0
    files = hub.repositories["user/name"]["files"]
    readme = files["README.md"].decode()
    assert "| head | linear, 2 classes or answers |" in readme
    assert ("- video-text-retrieval\n" in readme) == has_texts

    def snapshot(name: str, allow_patterns: list[str], **options: object) -> str:
        place = tmp_path / "cache" / name
        place.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (place / file).write_bytes(content)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    shutil.copyfile(clips[0], tmp_path / "a.mp4")
    shutil.copyfile(clips[1], tmp_path / "b.mp4")
    monkeypatch.chdir(tmp_path)
    frames = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    names: dict[str, object] = {"frames": frames}
    exec(readme.partition("```python\n")[2].partition("```")[0], names)
    if has_texts:
        own = harvest.load(tmp_path / "model").embed_videos(["a.mp4", "b.mp4"])
        torch.testing.assert_close(names["videos"], own)
    else:
        torch.testing.assert_close(names["features"].pooled, model.encode_video(frames).pooled)
    assert (tmp_path / "cache" / "user" / "name" / "head.safetensors").is_file()
    save_model(tmp_path / "model", *small_model(seed=1))  # others in their place: the card is not of them
    assert not (tmp_path / "model" / "README.md").exists()


def test_dry_run_asks_nobody_and_a_card_by_hand_is_kept(folder: Path, hub: Hub, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    run = {"recipe": "harvest-b16", "data": {"train": "/data/mine.jsonl"}, "loop": {"steps": 7}}
    (folder.parent / "config.json").write_text(json.dumps(run))
    code, out, _ = pushed(capsys, folder.parent, "user/name", "--dry-run")
    readme = (folder / "README.md").read_text()
    size = f"{(folder / 'model.safetensors').stat().st_size:,} bytes  model.safetensors"
    assert code == 0 and size in out and "not uploaded" in out and hub.asked == []
    assert "- mine.jsonl: terms not stated" in readme and "| schedule | steps 7 |" in readme
    assert "No benchmark card" in readme and "base_model" not in readme and "\nlicense" not in readme
    (folder / "README.md").write_text("by hand")
    assert pushed(capsys, folder, "user/name", "--dry-run")[0] == 0
    code, _, err = pushed(capsys, folder, "user/name", "--dry-run", "--licence", "mit")
    assert code == 2 and "--new-card" in err and (folder / "README.md").read_text() == "by hand"
    assert pushed(capsys, folder, "user/name", "--dry-run", "--licence", "mit", "--new-card")[0] == 0
    assert "license: mit\n" in (folder / "README.md").read_text()
    code, _, err = pushed(capsys, folder, "user/name")
    assert code == 2 and "HF_TOKEN" in err and err.count("\n") == 1 and hub.asked == []


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/repos/create", 401, "the token is not valid"),
        ("/api/models/user/name/preupload", 403, "may not write"),
        ("/user/name.git", 413, "413 (too large)"),
        ("/api/models/user/name/commit", 400, "400 (too large)"),
    ],
)
def test_refused_uploads(folder: Path, hub: Hub, capsys, path: str, status: int, said: str) -> None:
    hub.refuse[path] = (status, "too large")
    hub.refuse["/api/models/user/name/x"] = (401, "")
    if path == "/api/repos/create":
        hub.refuse["/api/models"] = (401, "")
    code, _, err = pushed(capsys, folder, "user/name")
    assert code == 2 and said in err and err.startswith("harvest: user/name was not uploaded")
    assert err.count("\n") == 1
    assert not any(one["files"] for one in hub.repositories.values())


def test_a_private_upload_never_goes_to_a_public_repository(folder: Path, hub: Hub, capsys) -> None:
    assert pushed(capsys, folder, "user/private", "--private")[0] == 0
    assert hub.repositories["user/private"]["private"]
    hub.repositories["user/name"] = {"private": False, "files": {}}
    code, _, err = pushed(capsys, folder, "user/name", "--private")
    assert code == 2 and "is public" in err and hub.repositories["user/name"]["files"] == {}


def test_no_hub_there(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, _, err = pushed(capsys, folder, "user/name")
    assert code == 2 and "was not uploaded" in err and err.count("\n") == 1


def test_what_is_no_model_or_not_its_own_is_refused(
    folder: Path, frame_model: Path, tmp_path, capsys
) -> None:
    def refusal(*args: object) -> str:
        code, _, err = pushed(capsys, *args, "--dry-run")
        assert code == 2 and err.count("\n") == 1
        return err

    assert "expected user/name" in refusal(folder, "name")
    assert "names no repository" in refusal(folder, "user/na me")
    assert "not a Harvest model folder" in refusal(tmp_path / "nothing", "user/name")
    assert not (tmp_path / "nothing").exists()
    other = card_in(tmp_path / "card", frame_model)
    assert "is of other weights" in refusal(folder, "user/name", "--card", other)
    assert "did you mean 'panda-70m'" in refusal(folder, "user/name", "--data", "panda70m")
    assert not (folder / "README.md").exists()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "modules.json").symlink_to(tmp_path / "secret.json")
    assert "link to outside" in refusal(folder, "user/name")
    (folder / "modules.json").unlink()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert "checksum" in refusal(folder, "user/name")


def test_base_model_and_data_are_what_the_run_notes(
    folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "started_from": "openai/clip"}))
    (tmp_path / "train.csv").write_text(
        "videoID,url,timestamp,caption,matching_score\nx,https://a.b/x,\"[['0:00:01','0:00:02']]\",\"['a']\",\"[0.5]\"\n"
    )
    data = {"train": str(tmp_path / "train.csv"), "more": ["/data/shards-{000..999}.tar"], "images": ""}
    (folder.parent / "config.json").write_text(json.dumps({"recipe": "harvest-b16", "data": data}))
    assert pushed(capsys, folder, "user/name", "--dry-run")[0] == 0
    readme = (folder / "README.md").read_text()
    assert (
        "base_model" not in readme and "| base model | openai/clip |" in readme
    )  # it could be a local folder
    assert "- Panda-70M (train.csv); " in readme and "- shards-{000..999}.tar: terms not stated" in readme
    cached = tmp_path / "cache" / "models--openai--clip"
    for name, content in {"refs/main": COMMIT, f"snapshots/{COMMIT}/config.json": "{}"}.items():
        (cached / name).parent.mkdir(parents=True)
        (cached / name).write_text(content)
    (folder.parent / "config.json").write_text("[1]")  # of no run
    assert pushed(capsys, folder, "user/name", "--dry-run", "--new-card")[0] == 0
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nbase_model: openai/clip\n") and "- not stated" in readme


def test_notes_lose_the_folders_of_this_machine() -> None:
    notes = {
        "started_from": "/home/a b/clip.pt",
        "import_report": {"notes": ["sizes of /data/x/config.json, as https://a.b/c/d says, ~/m/y.pt", 1]},
    }
    assert _public(notes) == {
        "started_from": "clip.pt",
        "import_report": {"notes": ["sizes of config.json, as https://a.b/c/d says, y.pt", 1]},
    }
