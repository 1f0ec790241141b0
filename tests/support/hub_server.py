"""The part of the Hub's HTTP API that publishing needs, on loopback, with faults on demand.

Written from what huggingface_hub 1.21 sends (hf_api, _commit_api, lfs) and reads back. Weights are
stored as LFS objects, in parts above PART bytes, at URLs with a signature that must not be shown.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_" + "Q7wErTyUiOpAsDfGhJkLzXcVbNm012345678"
SIGNATURE = "5f0e3c9d8b7a61524334"
PART = 150_000


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD path` matches `where`, `times` times.

    `status`: answered instead; `cut`: the connection ends after that many bytes of the body;
    `stall`: no answer until the server ends; `pause`: seconds to wait for each 16 kB of the body.
    """

    where: str
    times: int = 10**9
    status: int = 0
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: bool = False
    pause: float = 0.0


class Hub:
    """A Hub with its own port; use as a context manager."""

    def __init__(self, *faults: Fault) -> None:
        self.repositories: dict[str, Repository] = {}
        self.cards: dict[str, dict[str, Any]] = {}  # of base models
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.faults = list(faults)
        self.ended = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def seen(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [request for request in self.requests if re.search(pattern, request)]

    def fault(self, request: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.where, request):
                    fault.times -= 1
                    return fault
        return Fault("")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        address = urlsplit(self.path)
        request = f"{self.command} {address.path}"
        fault = self.hub.fault(request)
        body = self._read(fault)
        with self.hub.lock:
            self.hub.requests.append(request)
        if fault.stall:
            self.hub.ended.wait()
        if body is None or fault.stall:
            self.close_connection = True
            return
        if fault.status:
            self._send(fault.status, {"error": fault.message}, fault.headers)
            return
        signed = address.path.startswith(("/storage/", "/complete/"))
        if signed and (address.query != f"X-Amz-Signature={SIGNATURE}" or self._token()):
            self._send(403, {"error": "bad signature, or a token that should not be here"})
        elif not signed and self._token() != TOKEN:
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        else:
            with self.hub.lock:
                self._route(address.path, body)

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _read(self, fault: Fault) -> bytes | None:
        """The body; None where the connection is to break while it is sent."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        left = int(self.headers.get("Content-Length") or 0)
        if fault.cut is not None:
            self.rfile.read(min(fault.cut, left))
            return None
        read = b""
        while left > len(read):
            read += self.rfile.read(min(16_384, left - len(read)))
            time.sleep(fault.pause)
        return read

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _route(self, path: str, body: bytes) -> None:
        routes: dict[str, Callable[..., None]] = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/(?P<repo>[^/]+/[^/]+)": self._info,
            r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/main": self._info,
            r"/api/models/(?P<repo>[^/]+/[^/]+)/refs": self._refs,
            r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main": self._preupload,
            r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main": self._commit,
            r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>\w+)": self._tag,
            r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/storage/(?P<oid>\w{64})": self._store,
            r"/storage/(?P<oid>\w{64})/(?P<part>\d+)": self._store_part,
            r"/complete/(?P<oid>\w{64})": self._complete,
            r"/verify": self._verify,
        }
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                answer(body, **match.groupdict())
                return
        self._send(404, {"error": "Not Found"})

    def _create(self, body: bytes) -> None:
        request = json.loads(body)
        repo = f"{request['organization']}/{request['name']}"
        url = f"{self.hub.url}/{repo}"
        if repo in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": url})
            return
        self.hub.repositories[repo] = Repository(request["visibility"] == "private")
        self._send(200, {"url": url, "name": repo})

    def _validate(self, body: bytes) -> None:
        metadata = json.loads(body)["content"].split("---\n")[1]
        bad = "license: made-up" in metadata
        errors = [{"message": '"license" must be one of [apache-2.0, ...]'}] if bad else []
        self._send(400 if bad else 200, {"errors": errors, "warnings": []})

    def _info(self, body: bytes, repo: str) -> None:
        if card := self.hub.cards.get(repo):
            self._send(200, {"id": repo, "private": False, "cardData": card})
            return
        if repository := self._repository(repo):
            sha = repository.commits[-1] if repository.commits else "0" * 40
            self._send(200, {"id": repo, "private": repository.private, "sha": sha})

    def _refs(self, body: bytes, repo: str) -> None:
        if repository := self._repository(repo):
            tags = [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
                for name, commit in repository.tags.items()
            ]
            self._send(200, {"branches": [], "converts": [], "tags": tags})

    def _repository(self, repo: str) -> Repository | None:
        repository = self.hub.repositories.get(repo)
        if repository is None:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(404, {"error": "Repository not found"}, headers)
        return repository

    def _preupload(self, body: bytes, repo: str) -> None:
        repository = self._repository(repo)
        if repository is None:
            return
        answers = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith((".safetensors", ".bin"))
            there = repository.files.get(file["path"])
            answer = {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if large else "regular"
            if there is not None:
                blob = b"blob %d\0" % len(there) + there
                digest = hashlib.sha256(there) if large else hashlib.sha1(blob)
                answer["oid"] = digest.hexdigest()
            answers.append(answer)
        self._send(200, {"files": answers})

    def _batch(self, body: bytes, repo: str) -> None:
        answers = []
        for requested in json.loads(body)["objects"]:
            answer = {"oid": requested["oid"], "size": requested["size"]}
            if requested["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": self._upload(requested["oid"], requested["size"]),
                    "verify": {"href": f"{self.hub.url}/verify"},
                }
            answers.append(answer)
        self._send(200, {"transfer": "multipart", "objects": answers})

    def _upload(self, oid: str, size: int) -> dict[str, Any]:
        address, signed = f"{self.hub.url}/storage/{oid}", f"?X-Amz-Signature={SIGNATURE}"
        if size <= PART:
            return {"href": address + signed}
        parts = {str(i + 1): f"{address}/{i + 1}{signed}" for i in range(-(-size // PART))}
        header = {"chunk_size": str(PART)} | parts
        return {"href": f"{self.hub.url}/complete/{oid}{signed}", "header": header}

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "bytes do not match their hash"})
            return
        self.hub.objects[oid] = body
        self._send(200, {})

    def _store_part(self, body: bytes, oid: str, part: str) -> None:
        self.hub.parts[oid, int(part)] = body
        self._send(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def _complete(self, body: bytes, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        self._store(b"".join(self.hub.parts[oid, number] for number in numbers), oid)

    def _verify(self, body: bytes) -> None:
        requested = json.loads(body)
        whole = len(self.hub.objects.get(requested["oid"], b"")) == requested["size"]
        self._send(200 if whole else 404, {})

    def _commit(self, body: bytes, repo: str) -> None:
        repository = self._repository(repo)
        if repository is None:
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
        commit = hashlib.sha1(body).hexdigest()
        repository.commits.append(commit)
        self._send(
            200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}
        )

    def _tag(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        if repository is not None:
            repository.tags[json.loads(body)["tag"]] = revision
            self._send(200, {})
