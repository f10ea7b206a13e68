"""A Hugging Face hub on loopback for the tests: models and data sets, small files, LFS and Xet, commits,
branches, tokens.

The real clients talk to it, unmodified, with HF_ENDPOINT in their environment (`Hub.environment`).  Every
request is recorded (`Hub.requests`), and faults can be injected: a status (`fail`), a broken connection,
before the request is carried out or after it (`fail(..., broken="before")`), or a request that waits
(`hold`).

Large files lie on a second port, as on the real hub: the clients must not send the token there.  Xet goes
through the client's `local://` store, a folder; what it holds is read from the client's own index files.
"""
import base64
import binascii
import hashlib
import itertools
import json
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

WRITE_TOKEN, READ_TOKEN = "hf_write" + "w" * 26, "hf_read" + "r" * 27
OWNER = "tester"
LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".png")
LARGE_BYTES = 10 << 20
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
OCTETS = "application/octet-stream"


# ------------------------------------------------------------------------------------------------------------
# What is stored
# ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: a small one with its content, or a large one by its SHA-256 (and its Xet hash)."""
    size: int
    content: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None

    @property
    def blob_id(self) -> str:
        """Git's name of what is in the repository: the file, or the pointer to a large one."""
        data = self.content if self.sha256 is None else POINTER.format(self.sha256, self.size).encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def as_json(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.blob_id, "size": self.size}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size,
                            "pointerSize": len(POINTER.format(self.sha256, self.size))}
        return entry | ({"xetHash": self.xet_hash} if self.xet_hash else {})


@dataclass(frozen=True)
class Commit:
    """A snapshot of a repository."""
    id: str
    parent: str | None
    title: str
    files: dict[str, StoredFile]


class Repository:
    """Commits and the branches that point at them."""

    def __init__(self, kind: str, name: str):
        self.kind, self.name = kind, name
        self.commits: dict[str, Commit] = {}
        self.private = False
        self.branches: dict[str, str] = {}
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, StoredFile], title: str) -> Commit:
        parent = self.branches.get(branch)
        identity = [self.kind, self.name, parent, title, len(self.commits),
                    sorted((path, file.blob_id) for path, file in files.items())]
        commit = Commit(hashlib.sha1(json.dumps(identity).encode()).hexdigest(), parent, title, files)
        self.commits[commit.id], self.branches[branch] = commit, commit.id
        return commit

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]


def xet_files(store: Path) -> dict[str, tuple[str, int]]:
    """Return {SHA-256: (Xet hash, size)} of the files in a `local://` store, from the shards that the client
    wrote.

    A shard: a header of 48 bytes, then records of 48 bytes.  Each file has a head (hash, flags, number of
    segments), its segments (a length at byte 36), as many verification records if bit 31 of the flags is set,
    and if bit 30 is, one that begins with its SHA-256.  A record that begins with 32 bytes 0xff ends the
    list.
    """
    def shown(raw: bytes) -> str:
        return b"".join(raw[i:i + 8][::-1] for i in range(0, 32, 8)).hex()  # four little-endian numbers

    files: dict[str, tuple[str, int]] = {}
    for shard in store.glob("xet/xorbs/shards/*.mdb"):
        data = shard.read_bytes()
        records = iter(struct.iter_unpack("48s", data[48:48 + (len(data) - 48) // 48 * 48]))
        for (head,) in records:
            if head[:32] == b"\xff" * 32:
                break
            flags, segments = struct.unpack_from("<II", head, 32)
            size = sum(struct.unpack_from("<I", segment, 36)[0]
                       for (segment,) in itertools.islice(records, segments))
            for _ in range(segments if flags >> 31 & 1 else 0):
                next(records)
            if flags >> 30 & 1:
                files[shown(next(records)[0])] = (shown(head), size)
    return files


# ------------------------------------------------------------------------------------------------------------
# What happens to requests
# ------------------------------------------------------------------------------------------------------------

@dataclass
class Request:
    """A request as it arrived; the names of its headers in lower case; `storage`: at the second port."""
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    storage: bool


@dataclass
class Fault:
    """What happens to the next `times` requests that match: a status, a broken connection, or a wait."""
    method: str
    path: re.Pattern
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    broken: str = ""  # the connection breaks "before" the request is carried out, or "after" it
    change: Callable[[], None] | None = None  # is called first
    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event | None = None

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and bool(self.path.search(path))


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Hub:
    """The hub: `with Hub() as hub:` serves it at `hub.url`; without a folder `xet_store` there is no Xet."""

    def __init__(self, xet_store: Path | None = None):
        self.xet_store = xet_store
        self.tokens = {WRITE_TOKEN: account("write"), READ_TOKEN: account("read")}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}"
                                      for server in self.servers)

    def __enter__(self) -> "Hub":
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for fault in self.faults:
            if fault.release:
                fault.release.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, token: str | None = WRITE_TOKEN, **more: str) -> dict[str, str]:
        """Return an environment in which the clients talk to this hub, with cache and login in `home`."""
        inherited = {name: value for name, value in os.environ.items()
                     if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1",
                "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
                "HF_HUB_DISABLE_XET": "0" if self.xet_store else "1"}
        return inherited | ours | ({"HF_TOKEN": token} if token else {}) | more

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def add(self, name: str, files: Path | dict[str, bytes], kind: str = "model",
            branch: str = "main") -> Commit:
        """Put the files of a folder, or {name: content}, into a repository, made if it is missing."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        stored = {path: self.store(path, data) for path, data in files.items()}
        return repository.commit(branch, dict(repository.head.files) | stored, "add")

    def store(self, path: str, data: bytes) -> StoredFile:
        if not path.endswith(LARGE_SUFFIXES) and len(data) < LARGE_BYTES:
            return StoredFile(len(data), data)
        digest = hashlib.sha256(data).hexdigest()
        self.large[digest] = data
        return StoredFile(len(data), None, digest)

    def fail(self, method: str, path: str, status: int = 503, times: int = 1, **settings: Any) -> Fault:
        """Let the next `times` requests whose path matches fail; see `Fault` for the settings."""
        self.faults.append(Fault(method, re.compile(path), times, status, **settings))
        return self.faults[-1]

    def hold(self, method: str, path: str) -> Fault:
        """Let the next matching request wait until `release` is set; `arrived` is set when it has come."""
        return self.fail(method, path, 0, release=threading.Event())

    def sent(self, method: str, path: str) -> list[Request]:
        """Return the requests whose path matches."""
        return [request for request in self.requests
                if request.method == method and re.search(path, request.path)]


def account(role: str, orgs: tuple[dict[str, str], ...] = (), **token: Any) -> dict[str, Any]:
    """Return what whoami answers for a token of a role."""
    return {"type": "user", "id": "0", "name": OWNER, "fullname": OWNER, "orgs": list(orgs),
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role, **token}}}


def folder_as_json(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


# ------------------------------------------------------------------------------------------------------------
# The interface
# ------------------------------------------------------------------------------------------------------------

_routes: list[tuple[str, re.Pattern, Callable]] = []
KIND, NAME = r"/api/(?P<kind>model|dataset)s", r"/(?P<name>[^/]+/[^/]+)"


def route(method: str, path: str) -> Callable[[Callable], Callable]:
    """Bind a method of `Handler` to requests; the named groups of `path` become its arguments."""
    def bind(function: Callable) -> Callable:
        _routes.append((method, re.compile(path), function))
        return function
    return bind


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""
    protocol_version = "HTTP/1.1"
    hub: Hub
    query: dict[str, str]
    content: bytes
    mute = False  # the request is carried out, and its answer is lost

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None,
               data: bytes | None = None) -> None:
        """Send JSON, or `data` as it is."""
        if self.mute:
            self.close_connection = True
            return
        body = data if data is not None else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        always = {"Content-Type": "application/json" if data is None else OCTETS,
                  "Content-Length": str(len(body))}
        for name, text in (always | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(self, data: bytes, headers: dict[str, str]) -> None:
        """Send the content of a file, or the requested range of it."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.answer(data=data, headers=headers | {"Accept-Ranges": "bytes"})
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        return self.answer(data=data[first:last + 1], status=206,
                           headers=headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self) -> None:
        self.content = self.read_body()
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query))
        storage = self.server is self.hub.servers[1]
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, self.path, headers, self.content, storage))
        with self.hub.lock:
            fault = next((f for f in self.hub.faults if f.matches(self.command, parts.path)), None)
            if fault:
                fault.times -= 1
        if fault:
            fault.arrived.set()
            if fault.change:
                fault.change()
            if fault.release:
                fault.release.wait(300)
            if fault.broken == "before":
                self.close_connection = True
                return
            self.mute = fault.broken == "after"
            if fault.status and not fault.broken:
                return self.answer({"error": "injected"}, fault.status, fault.headers)
        self.dispatch(parts.path)

    def dispatch(self, path: str) -> None:
        try:
            for method, pattern, function in _routes:
                match = pattern.fullmatch(path)
                if match and (method == self.command or (method == "GET" and self.command == "HEAD")):
                    with self.hub.lock:
                        function(self, **{name: unquote(value) if value else value
                                          for name, value in match.groupdict().items()})
                    return
            raise Refusal(404, f"no such route: {self.command} {path}")
        except Refusal as refusal:
            self.answer(refusal.body, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def account(self) -> dict[str, Any] | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def find(self, kind: str, name: str, write: bool = False) -> Repository:
        """Return a repository, or refuse."""
        account = self.account()
        if (kind, name) not in self.hub.repositories:
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and (account is None or account["auth"]["accessToken"]["role"] == "read"):
            raise Refusal(401 if account is None else 403, "Forbidden: this token may not write")
        return self.hub.repositories[kind, name]

    def find_commit(self, kind: str, name: str, revision: str | None,
                    write: bool = False) -> tuple[Repository, Commit]:
        """Return a repository and its commit at a branch or commit identifier, or refuse."""
        repository = self.find(kind, name, write)
        commit = repository.at(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        if self.account() is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.answer(self.account())

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        self.answer({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        wanted, account = json.loads(self.content), self.account()
        if account is None or account["auth"]["accessToken"]["role"] == "read":
            raise Refusal(403 if account else 401, "You don't have the rights to create a repository")
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or account['name']}/{wanted['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else 'datasets/'}{name}"
        if (kind, name) in self.hub.repositories:
            raise Refusal(409, "You already created this repository", url=url)
        self.hub.repositories[kind, name] = Repository(kind, name)
        self.hub.repositories[kind, name].private = wanted.get("visibility") == "private"
        self.answer({"url": url, "name": name, "id": name})

    @route("GET", KIND + NAME + "(?:/revision/(?P<revision>[^/]+))?")
    def info(self, kind: str, name: str, revision: str | None) -> None:
        repository, commit = self.find_commit(kind, name, revision)
        siblings = [{"rfilename": path, "size": file.size, "blobId": file.blob_id}
                    for path, file in sorted(commit.files.items())]
        self.answer({"_id": "0", "id": name, "modelId": name, "author": name.partition("/")[0],
                     "sha": commit.id, "private": repository.private, "gated": False, "disabled": False,
                     "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
                     "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"})

    @route("GET", KIND + NAME + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        _, commit = self.find_commit(kind, name, revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        below = {path.removeprefix(prefix): file for path, file in commit.files.items()
                 if path.startswith(prefix)}
        if prefix and not below:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        folders = {parent.as_posix() for path in below for parent in Path(path).parents if parent.name}
        shown = [file.as_json(prefix + path) for path, file in sorted(below.items())
                 if recursive or "/" not in path]
        shown += [folder_as_json(prefix + path) for path in sorted(folders) if recursive or "/" not in path]
        self.answer(shown, headers={"X-Repo-Commit": commit.id})

    @route("POST", KIND + NAME + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, kind: str, name: str, revision: str) -> None:
        _, commit = self.find_commit(kind, name, revision)
        as_json = "json" in self.headers.get("Content-Type", "")
        wanted = (json.loads(self.content)["paths"] if as_json
                  else [value for key, value in parse_qsl(self.content.decode()) if key == "paths"])
        folders = {parent.as_posix() for path in commit.files for parent in Path(path).parents}
        self.answer([commit.files[path].as_json(path) if path in commit.files else folder_as_json(path)
                     for path in wanted if path in commit.files or path in folders])

    @route("GET", KIND + NAME + "/refs")
    def refs(self, kind: str, name: str) -> None:
        branches = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                    for branch, commit in self.find(kind, name).branches.items()]
        self.answer({"branches": branches, "converts": [], "tags": []})

    @route("GET", KIND + NAME + "/commits/(?P<revision>[^/]+)")
    def commits(self, kind: str, name: str, revision: str) -> None:
        repository, commit = self.find_commit(kind, name, revision)
        history = [commit]
        while history[-1].parent:
            history.append(repository.commits[history[-1].parent])
        self.answer([{"id": made.id, "title": made.title, "message": "", "authors": [],
                      "date": "2026-01-01T00:00:00.000Z"} for made in history])

    @route("POST", KIND + NAME + "/branch/(?P<branch>[^/]+)")
    def create_branch(self, kind: str, name: str, branch: str) -> None:
        start = json.loads(self.content or b"{}").get("startingPoint")
        repository, commit = self.find_commit(kind, name, start, write=True)
        if branch in repository.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        repository.branches[branch] = commit.id
        self.answer({}, 201)

    @route("DELETE", KIND + NAME + "/branch/(?P<branch>[^/]+)")
    def delete_branch(self, kind: str, name: str, branch: str) -> None:
        if self.find(kind, name, write=True).branches.pop(branch, None) is None:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        self.answer({})

    @route("POST", KIND + NAME + "/preupload/(?P<revision>[^/]+)")
    def preupload(self, kind: str, name: str, revision: str) -> None:
        _, commit = self.find_commit(kind, name, revision, write=True)
        answers = []
        for file in json.loads(self.content)["files"]:
            large = file["path"].endswith(LARGE_SUFFIXES) or file["size"] >= LARGE_BYTES
            present = commit.files.get(file["path"])
            answers.append({"path": file["path"], "uploadMode": "lfs" if large else "regular",
                            "shouldIgnore": False}
                           | ({"oid": present.sha256 or present.blob_id} if present else {}))
        self.answer({"files": answers})

    @route("POST", KIND + NAME + "/commit/(?P<revision>[^/]+)")
    def commit(self, kind: str, name: str, revision: str) -> None:
        repository, parent = self.find_commit(kind, name, revision, write=True)
        files, title = dict(parent.files), ""
        in_xet = xet_files(self.hub.xet_store) if self.hub.xet_store else {}
        for entry in map(json.loads, self.content.splitlines()):
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", parent.id) != parent.id:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error:
                    raise Refusal(400, f"{value['path']} is not base64") from None
                files[value["path"]] = StoredFile(len(content), content)
            elif key == "lfsFile" and value["oid"] in in_xet:
                xet_hash, size = in_xet[value["oid"]]
                files[value["path"]] = StoredFile(size, None, value["oid"], xet_hash)
            elif key == "lfsFile" and value["oid"] in self.hub.large:
                files[value["path"]] = StoredFile(len(self.hub.large[value["oid"]]), None, value["oid"])
            elif key == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                raise Refusal(400, f"{key} {value.get('path')}: there is no such object")
        made = repository.commit(revision, files, title)
        url = f"{self.hub.url}/{'' if kind == 'model' else 'datasets/'}{name}/commit/{made.id}"
        self.answer({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})

    @route("GET", "/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        kind = "dataset" if kind else "model"
        _, commit = self.find_commit(kind, name, revision)
        if path not in commit.files:
            error = Refusal(404, "Entry not found", "EntryNotFound")
            error.headers["X-Repo-Commit"] = commit.id
            raise error
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.sha256 or file.blob_id}"'}
        if file.sha256 is None:
            return self.answer_file(file.content, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size),
                    "Location": f"{self.hub.storage_url}/large/{file.sha256}?signature=0"}
        if file.xet_hash:
            headers |= {"X-Xet-Hash": file.xet_hash,
                        "Link": f"<{self.hub.url}/api/{kind}s/{name}/xet-read-token/{commit.id}>; "
                                'rel="xet-auth"'}
        return self.answer(status=302, headers=headers)

    @route("POST", r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str | None, name: str) -> None:
        self.find("dataset" if kind else "model", name, write=True)
        answers = []
        for wanted in json.loads(self.content)["objects"]:
            answers.append({"oid": wanted["oid"], "size": wanted["size"], "authenticated": True})
            if wanted["oid"] not in self.hub.large:
                place = f"/large/{wanted['oid']}"
                answers[-1]["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}{place}?signature=0", "header": {}},
                    "verify": {"href": f"{self.hub.url}{place}/verify", "header": {}}}
        self.answer({"transfer": "basic", "objects": answers},
                    headers={"Content-Type": "application/vnd.git-lfs+json"})

    @route("PUT", "/large/(?P<sha256>[0-9a-f]{64})")
    def put_large(self, sha256: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != sha256:
            raise Refusal(400, "the content has another SHA-256")
        self.hub.large[sha256] = self.content
        self.answer(data=b"", headers={"ETag": '"0"'})

    @route("POST", "/large/(?P<sha256>[0-9a-f]{64})/verify")
    def verify_large(self, sha256: str) -> None:
        if len(self.hub.large.get(sha256, b"")) != json.loads(self.content)["size"]:
            raise Refusal(404, "there is no such object")
        self.answer({"success": True})

    @route("GET", "/large/(?P<sha256>[0-9a-f]{64})")
    def get_large(self, sha256: str) -> None:
        self.answer_file(self.hub.large[sha256], {"ETag": f'"{sha256}"'})

    @route("GET", KIND + NAME + "/xet-(?P<right>read|write)-token/(?P<revision>[^/]+)")
    def xet_token(self, kind: str, name: str, right: str, revision: str) -> None:
        self.find(kind, name, write=right == "write")
        if self.hub.xet_store is None:
            raise Refusal(404, "no Xet here")
        url, until = f"local://{self.hub.xet_store}", int(time.time()) + 3600
        self.answer({"casUrl": url, "exp": until, "accessToken": "xet"},
                    headers={"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet",
                             "X-Xet-Token-Expiration": str(until)})


def written_files(folder: Path) -> Iterator[Path]:
    """Yield every file below `folder`, links not followed."""
    yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
