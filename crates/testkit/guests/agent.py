"""A small but real agent workload: what must be as it was after a sleep.

Keeps a session in memory, writes files, counts in a background thread, holds a block of memory and an outbound
TCP connection, and answers about all of it over HTTP. Standard library only.

  GET  /answer            a cheap answer
  GET  /status            counter, connection, file, memory, clocks
  GET  /self              who the process thinks it is, and what it draws: host name, environment, randomness
  GET  /history           the session so far
  POST /history           append the body to the session and to a file
  GET  /file              lines and SHA-256 of that file, read back
  GET  /hash              SHA-256 of the whole memory block
  GET  /touch             touch every page of the block; returns the milliseconds that took
  GET  /alloc?mib=N       replace the block: half random, half compressible; with &kind=sparse one page of 64 has
                          a byte in it, and all are touched
  GET  /say?text=T        send T over the outbound connection and return the echo
  GET  /busy?ms=N         burn CPU for N ms
  GET  /gap               the longest that a tick came late since this was last asked, in milliseconds
"""

import argparse
import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, urlparse

PAGE = 4096
MIB = 1 << 20


def mac_address(interface):
    request = struct.pack("256s", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, 0x8927, request)[18:24].hex(":")  # SIOCGIFHWADDR


class Block:
    """A block of memory: even MiB are random, odd ones repeat a short text."""

    def __init__(self, mib):
        self.data = bytearray(mib * MIB)
        text = b"the dormouse sleeps in the teapot; "
        text = (text * (MIB // len(text) + 1))[:MIB]
        for index in range(mib):
            part = os.urandom(MIB) if index % 2 == 0 else text
            self.data[index * MIB:(index + 1) * MIB] = part

    @classmethod
    def sparse(cls, mib):
        block = cls(0)
        block.data = bytearray(mib * MIB)
        for page in range(0, len(block.data), PAGE):
            block.data[page] = page // PAGE % 64 == 0
        return block

    def hash(self):
        return hashlib.sha256(self.data).hexdigest()

    def touch(self):
        began = time.monotonic()
        total = sum(self.data[::PAGE])
        return {"ms": (time.monotonic() - began) * 1000, "pages": len(self.data) // PAGE, "sum": total}


class Outbound:
    """A connection to a peer that echoes lines; opened once, never reopened."""

    def __init__(self, target, keepalive):
        host, port = target.rsplit(":", 1)
        self.lock = threading.Lock()
        self.error = None
        self.lines = 0
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        if keepalive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive)
        self.reader = self.socket.makefile("rb")

    def say(self, text):
        with self.lock:
            try:
                self.socket.sendall(text.encode() + b"\n")
                echo = self.reader.readline()
                if not echo:
                    raise ConnectionError("closed by the peer")
                self.lines += 1
                return echo.decode().rstrip("\n")
            except OSError as error:
                self.error = str(error)
                raise

    def status(self):
        return {"local": list(self.socket.getsockname()), "alive": self.error is None, "error": self.error,
                "lines": self.lines}


class Agent:
    def __init__(self, options):
        self.history = []
        self.nonce = os.urandom(16).hex()
        self.generator = random.Random(self.nonce)
        self.signals = []
        signal.signal(signal.SIGUSR1, lambda number, frame: self.signals.append(number))
        self.ticks = 0
        self.late = 0.0
        self.tick_seconds = options.tick
        os.makedirs(options.files, exist_ok=True)
        self.journal = open(os.path.join(options.files, "journal"), "a+", buffering=1)
        self.block = Block(options.mib)
        self.outbound = Outbound(options.connect, options.keepalive) if options.connect else None
        self.ticker = threading.Thread(target=self.count, daemon=True)
        self.ticker.start()

    def count(self):
        last = time.monotonic()
        while True:
            time.sleep(self.tick_seconds)
            self.ticks += 1
            now = time.monotonic()
            self.late = max(self.late, now - last - self.tick_seconds)
            last = now

    def gap(self):
        late, self.late = self.late, 0.0
        return {"ms": late * 1000}

    def append(self, text):
        self.history.append(text)
        self.journal.write(json.dumps(text) + "\n")
        return len(self.history)

    def lines_in_file(self):
        with open(self.journal.name) as file:
            return sum(1 for _ in file)

    def file(self):
        with open(self.journal.name, "rb") as file:
            text = file.read()
        return {"path": self.journal.name, "lines": text.count(b"\n"), "sha256": hashlib.sha256(text).hexdigest()}

    def whoami(self):
        return {
            "hostname": socket.gethostname(),
            "mac": mac_address("eth0"),
            "environ": dict(os.environ),
            "nonce": self.nonce,
            "generated": self.generator.random(),
            "urandom": os.urandom(16).hex(),
            "signals": len(self.signals),
            "time": time.time(),
            "pid": os.getpid(),
        }

    def status(self):
        return {
            "ticks": self.ticks,
            "ticker": {"thread": self.ticker.native_id, "alive": self.ticker.is_alive()},
            "history": len(self.history),
            "file_lines": self.lines_in_file(),
            "file_open": not self.journal.closed,
            "block_bytes": len(self.block.data),
            "threads": threading.active_count(),
            "connection": self.outbound.status() if self.outbound else None,
            "monotonic": time.monotonic(),
            "pid": os.getpid(),
        }


class Handler(BaseHTTPRequestHandler):
    agent = None

    def log_message(self, format, *args):
        pass

    def reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        agent = self.agent
        try:
            if url.path == "/answer":
                self.reply({"answer": 42})
            elif url.path == "/status":
                self.reply(agent.status())
            elif url.path == "/self":
                self.reply(agent.whoami())
            elif url.path == "/history":
                self.reply(agent.history)
            elif url.path == "/file":
                self.reply(agent.file())
            elif url.path == "/hash":
                self.reply({"sha256": agent.block.hash()})
            elif url.path == "/touch":
                self.reply(agent.block.touch())
            elif url.path == "/alloc":
                # The one before goes first.
                agent.block = None
                make = Block.sparse if query.get("kind") == ["sparse"] else Block
                agent.block = make(int(query["mib"][0]))
                self.reply({"bytes": len(agent.block.data)})
            elif url.path == "/gap":
                self.reply(agent.gap())
            elif url.path == "/say":
                self.reply({"echo": agent.outbound.say(query["text"][0])})
            elif url.path == "/busy":
                end = time.monotonic() + int(query["ms"][0]) / 1000
                while time.monotonic() < end:
                    pass
                self.reply({})
            else:
                self.reply({"error": "no such path"}, 404)
        except (KeyError, ValueError, AttributeError, OSError) as error:
            self.reply({"error": repr(error)}, 500)

    def do_POST(self):
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length).decode()
        if urlparse(self.path).path == "/history":
            self.reply({"length": self.agent.append(body)})
        else:
            self.reply({"error": "no such path"}, 404)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        # HTTPServer's own would ask DNS for a host name, which a pod without DNS answers after 10 s.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--mib", type=int, default=0, help="size of the memory block")
    parser.add_argument("--files", default="/tmp/agent", help="directory for the files it keeps")
    parser.add_argument("--connect", help="HOST:PORT of a peer that echoes lines")
    parser.add_argument("--keepalive", type=int, default=0, help="seconds between keepalives on that connection")
    parser.add_argument("--tick", type=float, default=1.0, help="seconds between ticks of the background thread")
    parser.add_argument("--dual-stack", action="store_true", help="listen on IPv6, too")
    options = parser.parse_args()
    Handler.agent = Agent(options)
    # The kernel takes IPv4 on such a socket, too, unless it is told not to.
    Server.address_family = socket.AF_INET6 if options.dual_stack else socket.AF_INET
    server = Server(("::" if options.dual_stack else "0.0.0.0", options.port), Handler)
    print(f"listening on {options.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
