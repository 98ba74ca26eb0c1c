"""A small Hub on this machine, for the real huggingface_hub client: create, commit, LFS up and down, read.

It keeps the repos in memory: `hub.commits["you/pets"]`, or `hub.commits["datasets/you/pets"]`, is a list of
{path: bytes}, oldest first. `hub.faults = {3: 503}` answers the third request from then on with that status; "cut"
closes the connection instead of answering, "cut after" does what was asked first, and "half" sends half of the content.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

TOKEN = "hf_stand_in"


class StandInHub:
    def __init__(self, port: int = 0):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}
        self.copies: dict[str, dict[str, str]] = {}  # of Spaces, with their variables
        self.requests: list[str] = []
        self.faults: dict[int, int | str] = {}
        self.connections: set[socket.socket] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def setup(self):
                super().setup()
                hub.connections.add(self.connection)

            def handle_one(self, work, *arguments):
                hub.requests.append(f"{self.command} {self.path.split('?')[0]}")
                self.fault = hub.faults.pop(len(hub.requests), None)
                if isinstance(self.fault, int):
                    return self.answer(self.fault, {"error": "a fault"}, Retry_After="0")
                if self.fault != "cut":
                    work(self, *arguments)
                if self.fault:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                return None

            def answer(self, status=200, body=b"", **headers):
                if self.fault == "cut after":
                    return
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", headers.pop("content_length", len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if self.fault == "half" else body)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_POST(self):
                self.handle_one(hub.write, self.body())

            do_PUT = do_POST

            def do_GET(self):
                self.handle_one(hub.read)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()

    def close(self) -> None:
        """Go away: clients keep connections open, and must not be answered on them any more."""
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def revision(files: dict[str, bytes], number: int) -> str:
        contents = sorted((name, hash(content)) for name, content in files.items())
        return hashlib.sha1(repr((number, contents)).encode()).hexdigest()

    @staticmethod
    def repo_id(path: str) -> str:
        """Return the repo of an API path: /api/models/you/pets/..., or /api/datasets/you/pets/..."""
        kind, owner, name = path.split("/")[2:5]
        return f"{'datasets/' * (kind == 'datasets')}{owner}/{name}"

    def oid(self, content: bytes | None) -> str | None:
        """Return what git calls a file, or LFS if it came through LFS."""
        if content is None:
            return None
        lfs = hashlib.sha256(content).hexdigest()
        return lfs if lfs in self.lfs else hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    def entries(self, files: dict[str, bytes], commit: str) -> list[dict]:
        """Return the files as the tree and the paths-info calls list them."""
        return [
            {"type": "file", "path": name, "size": len(content), "oid": self.oid(content)}
            for name, content in files.items()
        ]

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool, commit: str) -> list[dict]:
        """Return what lies in a folder ("" is the whole repo), the folders in it and, if recursive, all below."""
        start = f"{folder}/" if folder else ""
        below = [name.removeprefix(start) for name in files if name.startswith(start)]
        folders = {name.rsplit("/", 1)[0] for name in below if "/" in name}
        found = [{"type": "directory", "path": start + name, "oid": commit} for name in sorted(folders)]
        shown = {start + name: files[start + name] for name in below if recursive or "/" not in name}
        return found + self.entries(shown, commit)

    def paths_info(self, request, path: str, body: bytes) -> None:
        """Answer which of the asked paths are files or folders."""
        commit, files = self.find(self.repo_id(path), unquote(path.rsplit("/", 1)[-1]))
        asked = parse_qs(body.decode())["paths"] if b"paths=" in body else json.loads(body)["paths"]
        folders = [
            {"type": "directory", "path": name, "oid": commit}
            for name in asked
            if any(file.startswith(f"{name}/") for file in files)
        ]
        request.answer(200, folders + self.entries({name: files[name] for name in asked if name in files}, commit))

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return (commit hash, files) of a revision: "main", or a commit hash."""
        numbered = [(self.revision(files, number), files) for number, files in enumerate(self.commits[repo_id])]
        return next((one for one in reversed(numbered) if revision in ("main", one[0])), None)

    def write(self, request, body: bytes) -> None:
        """Answer a POST or PUT."""
        path = request.path.split("?")[0]
        if not path.startswith("/lfs/") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return request.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            repo_id = "datasets/" * (asked.get("type") == "dataset") + repo_id
            self.commits.setdefault(repo_id, [{}])
            self.private.setdefault(repo_id, asked.get("visibility") == "private" or asked.get("private", False))
            return request.answer(200, {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id})
        if path.startswith("/api/spaces/") and path.endswith("/duplicate"):
            asked = json.loads(body)
            self.copies[asked["repository"]] = {one["key"]: one["value"] for one in asked["variables"]}
            return request.answer(200, {"url": f"{self.url}/spaces/{asked['repository']}"})
        if path == "/api/validate-yaml":
            return request.answer(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.lfs[path.removeprefix("/lfs/")] = body
            return request.answer()
        if path.endswith("/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return request.answer(200, {"transfer": "basic", "objects": objects})
        if path.endswith("/paths-info/" + path.rsplit("/", 1)[-1]):
            return self.paths_info(request, path, body)
        repo_id = self.repo_id(path)
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".parquet", ".onnx")) else "regular",
                    "shouldIgnore": False,
                    "oid": self.oid(self.commits[repo_id][-1].get(file["path"])),
                }
                for file in json.loads(body)["files"]
            ]
            return request.answer(200, {"files": files})
        files = dict(self.commits[repo_id][-1])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.lfs[line["value"]["oid"]]
        self.commits[repo_id].append(files)
        commit = self.revision(files, len(self.commits[repo_id]) - 1)
        url = f"{self.url}/{repo_id}/commit/{commit}"
        return request.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def read(self, request) -> None:
        """Answer a GET or HEAD."""
        path = request.path.split("?")[0]
        if path.startswith("/lfs/"):
            content = self.lfs[path.removeprefix("/lfs/")]
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
            if not asked:
                return request.answer(200, content)
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            span = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            return request.answer(206, content[start : end + 1], Content_Range=span)
        api = path.startswith("/api/")
        dataset = path.startswith(("/api/datasets/", "/datasets/"))
        parts = path.removeprefix("/api").removeprefix("/models").removeprefix("/datasets").split("/")[1:]
        action, revision, rest = *(parts[2:4] if parts[3:] else ["", "main"]), unquote("/".join(parts[4:]))
        repo_id = "datasets/" * dataset + "/".join(parts[:2])
        hidden = self.private.get(repo_id, True) and request.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repo_id not in self.commits or hidden:
            return request.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        found = self.find(repo_id, unquote(revision))
        if not found:
            return request.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        commit, files = found
        if api:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            info = {"id": repo_id.removeprefix("datasets/"), "sha": commit, "siblings": siblings, "tags": []}
            if action == "tree":
                return request.answer(200, self.tree(files, rest, "recursive=true" in request.path.lower(), commit))
            return request.answer(200, {**info, "downloads": 0, "private": self.private[repo_id]})
        if rest not in files:
            return request.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content = files[rest]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"'}
        if etag in self.lfs:  # from another host name, as on the Hub: the client must not send its token there
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
            return request.answer(302, b"", Location=f"http://localhost:{self.port}/lfs/{etag}", **headers)
        return request.answer(200, content, **headers)
