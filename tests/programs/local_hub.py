"""A local stand-in for the Hugging Face hub's HTTP API."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator

TOKEN = "hf_right"


class Hub(http.server.BaseHTTPRequestHandler):
    """Makes repositories, takes commits, and gives the files to whoever has the token.

    The files of `server.repositories` are their contents by name. Those of the names in
    `server.large` go to its storage first (Git LFS: the client asks where to, puts them
    there and has them verified) and are named in the commit. Repositories named in
    `server.gated` give nothing.
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

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        repository = (about or file)[1] if about or file else path
        if repository in self.server.gated:
            return self.refuse(403, "GatedRepo")
        login = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        files = self.server.repositories.get(repository) if login else None
        if files is None:
            return self.refuse(401, "RepoNotFound")
        digests = {name: hashlib.sha1(files[name]).hexdigest() for name in files}
        commit = hashlib.sha1(json.dumps(digests).encode()).hexdigest()
        if about and (about[2] or "").startswith("/tree/"):
            one = {"type": "file"}
            return self.answer(
                200,
                [
                    one | {"path": name, "size": len(files[name]), "oid": digest}
                    for name, digest in digests.items()
                ],
            )
        if about:
            siblings = [{"rfilename": name} for name in files]
            known = {"id": repository, "sha": commit, "private": True, "tags": []}
            return self.answer(200, known | {"siblings": siblings})
        name = file[2]
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{digests[name]}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(files[name])))
        self.end_headers()
        if body:
            self.wfile.write(files[name])

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

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
        if token != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = asked["name"]
            owner = asked.get("organization") or "me"
            # Releases of the client differ in how they say it.
            private = asked.get("private", asked.get("visibility") == "private")
            self.server.made[f"{owner}/{name}"] = private
            self.server.repositories.setdefault(f"{owner}/{name}", {})
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
            files = self.server.repositories[found[1]]
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
                    files[part["value"]["path"]] = content
                if part["key"] == "lfsFile":
                    assert part["value"]["algo"] == "sha256"
                    content = self.server.stored[part["value"]["oid"]]
                    files[part["value"]["path"]] = content
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


@contextlib.contextmanager
def serve() -> Iterator[http.server.ThreadingHTTPServer]:
    """An empty hub on a port of its own, at `address`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.made, server.repositories = [], {}, {}
    server.large, server.full, server.stored, server.verified = (), False, {}, []
    server.gated = set()
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
