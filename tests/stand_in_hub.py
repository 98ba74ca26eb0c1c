"""A small Hub on this machine, for the real huggingface_hub client: create, commit, LFS up and down, read.

It keeps the model repos in memory: `hub.commits[repo_id]` is a list of {path: bytes}, oldest first.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_stand_in"


class StandInHub:
    def __init__(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def answer(self, status=200, body=b"", **headers):
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", headers.pop("content_length", len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def do_POST(self):
                hub.write(self, self.body())

            do_PUT = do_POST

            def do_GET(self):
                hub.read(self)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def revision(files: dict[str, bytes], number: int) -> str:
        return hashlib.sha1(repr((number, sorted(files))).encode()).hexdigest()

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return (commit hash, files) of a revision: "main", or a commit hash."""
        numbered = [(self.revision(files, number), files) for number, files in enumerate(self.commits[repo_id])]
        return next((one for one in reversed(numbered) if revision in ("main", one[0])), None)

    def write(self, request, body: bytes) -> None:
        """Answer a POST or PUT."""
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        if not path.startswith("/lfs/") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return request.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.commits.setdefault(repo_id, [{}])
            self.private.setdefault(repo_id, asked.get("visibility") == "private" or asked.get("private", False))
            return request.answer(200, {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id})
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
        repo_id = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
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
        self.requests.append(f"{request.command} {path}")
        if path.startswith("/lfs/"):
            return request.answer(200, self.lfs[path.removeprefix("/lfs/")])
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").split("/")[1:]
        repo_id, action, revision, rest = "/".join(parts[:2]), *(parts[2:4] or ["", "main"]), "/".join(parts[4:])
        hidden = self.private.get(repo_id, True) and request.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repo_id not in self.commits or hidden:
            return request.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        found = self.find(repo_id, revision)
        if not found:
            return request.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        commit, files = found
        if api:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": commit} for s in siblings]
            info = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            return request.answer(200, tree if action == "tree" else {**info, "private": self.private[repo_id]})
        if rest not in files:
            return request.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content = files[rest]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{etag}"'}
        if etag in self.lfs:  # from another host name, as on the Hub: the client must not send its token there
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(content))}
            return request.answer(302, b"", Location=f"http://localhost:{self.port}/lfs/{etag}", **headers)
        return request.answer(200, content, **headers)
