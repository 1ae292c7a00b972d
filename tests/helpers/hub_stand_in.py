"""A small Hugging Face Hub on this machine: enough of its HTTP interface for huggingface_hub's own client.

Repositories live in memory, every commit is a revision, and files go inside the commit (no LFS, no Xet).
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Hub:
    """State of the stand-in.

    Attributes:
        repos: name -> revision -> path -> content, of models and of datasets. "main" is the newest;
            commits have their hash as name, too.
        log: (method, path) of every request.
        cut: how many downloads are cut off in the middle.
        cut_ending: of the names of files whose downloads are.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.log: list[tuple[str, str]] = []
        self.cut = 0
        self.cut_ending = ".safetensors"

    def commit(self, repo: str, revision: str, lines: list[dict]) -> str:
        files = dict(self.repos[repo].get(revision, {}))
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos[repo][revision] = self.repos[repo][sha] = files
        return sha

    def upload(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Make a folder's files a revision of a repository."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        sha = hashlib.sha1(
            repr([(name, hash(content)) for name, content in sorted(files.items())]).encode()
        ).hexdigest()
        repository = self.repos.setdefault(repo, {})
        repository[revision] = repository[sha] = files
        return sha

    def downloads(self) -> set[str]:
        """Names of the files of which the content was asked for."""
        return {
            path.split("/resolve/")[1].partition("/")[2]
            for method, path in self.log
            if "/resolve/" in path and method == "GET"
        }

    def sha(self, repo: str, revision: str) -> str:
        files = self.repos[repo][revision]
        return next(name for name, content in self.repos[repo].items() if content is files and len(name) == 40)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def _json(self, body, status: int = 200, **headers):
        self._answer(json.dumps(body).encode(), status, **{"Content-Type": "application/json", **headers})

    def _answer(self, body: bytes, status: int = 200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.log.append(("POST", path))
        here = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'user'}/{request['name']}"
            if name in self.hub.repos:
                return self._json({"error": "exists", "url": f"{here}/{name}"}, 409)
            self.hub.repos[name] = {}
            self.hub.commit(name, "main", [])
            return self._json({"url": f"{here}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in paths]
            return self._json({"files": files})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.decode().splitlines()]
            sha = self.hub.commit(*match.groups(), lines)
            return self._json({"commitUrl": f"{here}/{match[1]}/commit/{sha}", "commitOid": sha, "success": True})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self.hub.repos[match[1]][match[2]] = self.hub.repos[match[1]]["main"]
            return self._json({})
        return self._json({"error": f"no such thing: {path}"}, 404)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.log.append((self.command, path))
        if path == "/api/whoami-v2":
            return self._json({"name": "user", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            repo, revision = match[1], match[2] or "main"
            if revision not in self.hub.repos.get(repo, {}):
                return self._missing(repo)
            files = self.hub.repos[repo][revision]
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self._json({"id": repo, "modelId": repo, "sha": self.hub.sha(repo, revision), "siblings": siblings})
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            files = {n: c for n, c in self.hub.repos[match[1]][match[2]].items() if n.startswith(match[3])}
            if not files:
                return self._json({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
            digests = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
            return self._json(
                [{"type": "file", "path": n, "size": len(c), "oid": digests[n]} for n, c in files.items()]
            )
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            if revision not in self.hub.repos.get(repo, {}):
                return self._missing(repo)
            if name not in self.hub.repos[repo][revision]:
                return self._json({"error": "no entry"}, 404, X_Error_Code="EntryNotFound")
            return self._file(self.hub.repos[repo][revision][name], name, self.hub.sha(repo, revision))
        return self._json({"error": f"no such thing: {path}"}, 404)

    do_HEAD = do_GET

    def _missing(self, repo: str):
        code = "RevisionNotFound" if repo in self.hub.repos else "RepoNotFound"
        return self._json({"error": code}, 404, X_Error_Code=code)

    def _file(self, content: bytes, name: str, sha: str):
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._answer(content[start:], 206, **headers)
        if self.command == "GET" and name.endswith(self.hub.cut_ending) and self.hub.cut:
            self.hub.cut -= 1
            self.send_response(200)
            for key, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self._answer(content, **headers)


@contextmanager
def hub_stand_in():
    """(address, `Hub`) of a running stand-in."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        thread.join()
