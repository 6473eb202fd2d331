"""The server inside a sandbox, as the Python client expects it at port 8888: commands and files over HTTP.

It speaks what agent-sandbox's example runtime for Python speaks. Standard library only.

  GET  /                  {"status": "ok", ...}
  POST /execute           {"command"[, "timeout_seconds"]} -> {"stdout", "stderr", "exit_code", "timed_out"}; no shell
  POST /upload            multipart with one part "file", whose file name is the path
  GET  /download/PATH     the file's content
  GET  /list/PATH         [{"name", "size", "type", "mod_time"}]
  GET  /exists/PATH       {"path", "exists"}

Paths are below SANDBOX_BASE_DIR (/app), in one URL segment.
"""

import json
import os
import re
import shlex
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

PORT = 8888
BASE = Path(os.environ.get("SANDBOX_BASE_DIR", "/app"))
EXEC_SECONDS = float(os.environ.get("SANDBOX_EXEC_TIMEOUT_SECONDS", "300"))


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def below_base(path):
    place = (BASE / path.lstrip("/")).resolve()
    if not place.is_relative_to(BASE.resolve()):
        raise Refused(403, "Access denied")
    return place


def execute(request):
    limit = request.get("timeout_seconds") or EXEC_SECONDS
    try:
        done = subprocess.run(
            shlex.split(request["command"]),
            cwd=BASE, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False,
        )
    except subprocess.TimeoutExpired as late:
        return outcome(late.stdout, f"Command timed out after {limit:g} seconds", 124, timed_out=True)
    except (OSError, ValueError) as error:
        return outcome(b"", f"Failed to execute command: {error}", 1)
    return outcome(done.stdout, done.stderr.decode(errors="replace"), done.returncode)


def outcome(stdout, stderr, exit_code, timed_out=False):
    return {
        "stdout": (stdout or b"").decode(errors="replace"), "stderr": stderr,
        "exit_code": exit_code, "timed_out": timed_out,
    }


def uploaded(content_type, body):
    """The path and the content of the only part of a multipart body."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if not boundary:
        raise Refused(422, "not multipart")
    edge = b"--" + boundary[1].encode()
    start, end = body.find(edge), body.rfind(b"\r\n" + edge + b"--")
    head, found, content = body[start + len(edge):end].partition(b"\r\n\r\n")
    name = re.search(rb'filename="([^"]*)"', head)
    if start < 0 or end < start or not found or not name:
        raise Refused(422, "no file in it")
    return name[1].decode(), content


def listing(folder):
    if not folder.is_dir():
        raise Refused(404, "Directory not found")
    entries = []
    for entry in sorted(folder.iterdir()):
        about = entry.stat()
        entries.append({
            "name": entry.name, "size": about.st_size, "mod_time": about.st_mtime,
            "type": "directory" if entry.is_dir() else "file",
        })
    return entries


class Handler(BaseHTTPRequestHandler):
    # Clients keep their connections, also while the sandbox sleeps.
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        body = self.body()
        self.answer(lambda: self.post(body))

    def get(self):
        verb, _, rest = self.path.lstrip("/").partition("/")
        path = unquote(rest)
        match verb:
            case "":
                return {"status": "ok", "message": "Sandbox Runtime is active."}
            case "list":
                return listing(below_base(path))
            case "exists":
                return {"path": path, "exists": below_base(path).exists()}
            case "download":
                file = below_base(path)
                if not file.is_file():
                    raise Refused(404, "File not found")
                return file.read_bytes()
        raise Refused(404, "Not Found")

    def post(self, body):
        match self.path:
            case "/execute":
                return execute(json.loads(body))
            case "/upload":
                path, content = uploaded(self.headers.get("Content-Type", ""), body)
                file = below_base(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                return {"message": f"File '{path}' uploaded successfully."}
        raise Refused(404, "Not Found")

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        # Trailers, and the empty line that ends them.
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def answer(self, work):
        status = 200
        try:
            result = work()
        except Refused as refused:
            status, result = refused.status, {"message": str(refused)}
        except (KeyError, ValueError) as error:
            status, result = 422, {"message": f"not understood: {error!r}"}
        except OSError as error:
            status, result = 500, {"message": str(error)}
        raw = isinstance(result, bytes)
        content = result if raw else json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        # Kubelet's probes ask every second.
        pass


BASE.mkdir(parents=True, exist_ok=True)
ThreadingHTTPServer(("", PORT), Handler).serve_forever()
