"""Uploads, to a local stand-in for the Hugging Face hub's HTTP API."""

import base64
import hashlib
import http.server
import json
import pathlib
import re
import threading

import huggingface_hub
import pytest

from lsrjax import export
from lsrjax.convert import hub
from lsrjax.errors import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


class Hub(http.server.BaseHTTPRequestHandler):
    """Makes repositories and takes commits; what it was sent is on the server.

    Files of the names in `server.large` go to its storage first (Git LFS: the client
    asks where to, puts them there and has them verified) and are named in the commit.
    """

    def log_message(self, *args):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self):
        content = self.body()
        if self.server.full:
            return self.answer(403, {"error": "Storage is full."})
        oid = self.path.removeprefix("/storage/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.stored[oid] = content
        self.answer(200, {})

    def batch(self, asked):
        """Where each object goes to; nothing to do for those that are there."""
        assert asked["operation"] == "upload" and "basic" in asked["transfers"]
        objects = []
        for one in asked["objects"]:
            put = {"href": f"{self.server.address}/storage/{one['oid']}"}
            verify = {"href": f"{self.server.address}/verify"}
            actions = {"actions": {"upload": put, "verify": verify}}
            there = one["oid"] in self.server.stored
            objects.append(one | ({} if there else actions))
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_POST(self):
        body = self.body()
        token = self.headers.get("Authorization")
        self.server.requests.append(self.path)
        if token != "Bearer hf_right":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = asked["name"]
            owner = asked.get("organization") or "me"
            # Releases of the client differ in how they say it.
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.made[f"{owner}/{name}"] = private
            address = f"{self.server.address}/{owner}/{name}"
            return self.answer(200, {"url": address})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        if self.path == "/verify":
            one = json.loads(body)
            self.server.verified.append(one["oid"])
            there = len(self.server.stored.get(one["oid"], "")) == one["size"]
            return self.answer(200 if there else 422, {})
        found = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path)
        if found and found[2] == "preupload":
            files = json.loads(body)["files"]
            mode = {name: "lfs" for name in self.server.large}
            modes = [
                {"path": f["path"], "uploadMode": mode.get(f["path"], "regular")}
                for f in files
            ]
            return self.answer(
                200, {"files": [m | {"shouldIgnore": False} for m in modes]}
            )
        if found:
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
                    self.server.files[part["value"]["path"]] = content
                if part["key"] == "lfsFile":
                    assert part["value"]["algo"] == "sha256"
                    content = self.server.stored[part["value"]["oid"]]
                    self.server.files[part["value"]["path"]] = content
            repository = f"{self.server.address}/{found[1]}"
            answer = {
                "success": True,
                "commitUrl": f"{repository}/commit/1",
                "commitOid": "1",
            }
            return self.answer(200, answer | {"hookOutput": ""})
        return self.answer(404, {"error": f"no {self.path} here"})

    def answer(self, status, values):
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.made, server.files = [], {}, {}
    server.large, server.full, server.stored, server.verified = (), False, {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    real = huggingface_hub.HfApi

    def local(**options):
        return real(endpoint=server.address, token=server.token, **options)

    server.token = "hf_right"
    monkeypatch.setattr(huggingface_hub, "HfApi", local)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_uploaded_whole(server, tmp_path, capsys, public):
    out = tmp_path / "out"
    command = ["--from", str(GOLDEN / "bert"), "--to", "lsrjax", "--out", str(out)]
    export.main([*command, "--push", "someone/tiny", *["--public"] * public])
    assert server.made == {"someone/tiny": not public}
    written = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }
    assert server.files == written and written
    assert f"Uploaded to {server.address}/someone/tiny" in capsys.readouterr().out


@pytest.fixture
def weights(server, tmp_path, monkeypatch):
    """A folder whose weights the hub wants in its storage."""
    # Xet, the client's other way, is a protocol of a compiled library.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "config.json").write_text("{}")
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for size, name in enumerate(names, start=3):
        (tmp_path / name).write_bytes(bytes(range(256)) * 1000 * size)
    server.large = names
    return tmp_path


def test_large_files_go_to_the_hub_s_storage(server, weights):
    hub.push(weights, "someone/tiny")
    written = {path.name: path.read_bytes() for path in weights.iterdir()}
    assert server.files == written and len(written) == 3
    large = [hashlib.sha256(written[name]).hexdigest() for name in server.large]
    assert sorted(server.stored) == sorted(server.verified) == sorted(large)
    # What is there already is not sent again.
    server.files.clear()
    hub.push(weights, "someone/tiny")
    assert server.files == written and len(server.verified) == 2


def test_storage_that_takes_no_more_makes_no_commit(server, weights):
    server.full = True
    with pytest.raises(InputError, match="is written, but was not uploaded"):
        hub.push(weights, "someone/tiny")
    assert not server.files and len(list(weights.iterdir())) == 3


def test_a_refusal_leaves_the_folder_and_says_what_to_do(server, tmp_path):
    server.token = "hf_wrong"
    (tmp_path / "file").write_text("content")
    with pytest.raises(InputError, match=r"401(.|\n)*`hf auth login`(.|\n)*hf upload"):
        hub.push(tmp_path, "someone/tiny")
    assert (tmp_path / "file").exists() and not server.files


def test_no_hub_there(server, tmp_path, monkeypatch):
    server.address = "http://127.0.0.1:9"  # discard; nobody listens
    with pytest.raises(InputError, match="is written, but was not uploaded"):
        hub.push(tmp_path, "someone/tiny")


def test_a_name_that_cannot_be(server, tmp_path):
    with pytest.raises(InputError, match="--push a/b/c"):
        hub.push(tmp_path, "a/b/c")
    assert not server.requests


def test_public_without_push(tmp_path, capsys):
    command = ["--from", "x", "--to", "lsrjax", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        export.main([*command, "--public"])
    assert "add --push" in capsys.readouterr().err
