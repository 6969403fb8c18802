"""Uploads, to a local stand-in for the Hugging Face hub's HTTP API."""

import base64
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
    """Makes repositories and takes commits; what it was sent is on the server."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
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
        found = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", self.path)
        if found and found[2] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return self.answer(
                200, {"files": [m | {"shouldIgnore": False} for m in modes]}
            )
        if found:
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
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
