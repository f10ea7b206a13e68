"""A git server that asks for a password: git's own HTTP backend behind a small Python server."""
import base64
import http.server
import os
import subprocess
from pathlib import Path
from typing import Any


class GitHandler(http.server.BaseHTTPRequestHandler):
    """Git's own HTTP backend, which asks for a password and fails the first `failures` requests."""
    root, failures = Path(), 0

    def answer(self) -> None:
        kind = type(self)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind.failures:
            kind.failures -= 1
            return self.send_error(503)
        expected = "Basic " + base64.b64encode(b"user:s3cr@t").decode()
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path, _, query = self.path.partition("?")
        environment = {**os.environ, "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
                       "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
                       "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                       "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                       "CONTENT_LENGTH": str(len(body)), "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        head, _, content = subprocess.run(["git", "http-backend"], input=body, env=environment,
                                          capture_output=True, check=True).stdout.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *arguments: Any) -> None:
        pass
