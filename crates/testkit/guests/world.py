"""One of everything that a kernel can hold for a process, and whether it is there still.

Each check is a generator: it prepares something up to its `yield`, and behind it looks whether it is as it was left.
Standard library only.

  GET  /answer              a cheap answer
  GET  /arm                 prepare everything (again)
  GET  /check               look at everything that was prepared: {"name": "ok" or what is wrong}
  GET  /read?path=P         a file's text
  GET  /hold?path=P         open a file and keep it open
  GET  /held                what the files that are kept open say, each read from its beginning
  GET  /received            bytes that the streams to STREAM_PORT have brought, and their hash
  GET  /clock               the wall clock and CLOCK_MONOTONIC, in seconds

On ECHO_PORT lines come back over TCP and datagrams over UDP. What comes to STREAM_PORT is counted and thrown away.
"""

import array
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import pty
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time
import tty
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlparse

from agent import Server

ECHO_PORT = 9000
STREAM_PORT = 9001
PATIENCE = 20
LIBC = ctypes.CDLL(None, use_errno=True)
HANDLED = []


def call(name, *args):
    result = getattr(LIBC, name)(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{str(found)[:200]} instead of {str(wanted)[:200]}")


def until(what, look):
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.01)


def open_file(folder):
    path = os.path.join(folder, "open")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.write(fd, b"0123456789")
    os.lseek(fd, 4, os.SEEK_SET)
    yield
    expect(os.read(fd, 3), b"456")
    os.write(fd, b"!")
    with open(path, "rb") as again:
        expect(again.read(), b"0123456789!")
    os.close(fd)


def unlinked_file(folder):
    path = os.path.join(folder, "unlinked")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    data = os.urandom(300_000)
    os.write(fd, data)
    os.unlink(path)
    yield
    expect(os.pread(fd, len(data), 0) == data, True)
    os.pwrite(fd, b"more", len(data))
    expect(os.fstat(fd).st_size, len(data) + 4)
    expect(os.path.exists(path), False)
    os.close(fd)


def mapped_file(folder):
    path = os.path.join(folder, "mapped")
    with open(path, "w+b") as file:
        file.truncate(1 << 20)
        mapping = mmap.mmap(file.fileno(), 1 << 20)
    data = os.urandom(1 << 20)
    mapping[:] = data
    yield
    expect(mapping[:] == data, True)
    mapping[:4] = b"last"
    mapping.flush()
    with open(path, "rb") as again:
        expect(again.read(4), b"last")
    mapping.close()


def folder_handle(folder):
    path = tempfile.mkdtemp(dir=folder)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield
    os.close(os.open("child", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    expect(os.listdir(fd), ["child"])
    os.close(fd)


def locked_file():
    with tempfile.NamedTemporaryFile() as file, open(file.name) as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("it was not locked any more")
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def memory_file():
    fd = os.memfd_create("world", os.MFD_ALLOW_SEALING)
    os.write(fd, b"in memory")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    yield
    expect(os.pread(fd, 9, 0), b"in memory")
    expect(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW, fcntl.F_SEAL_GROW)
    os.close(fd)


def pipe_with_data():
    reader, writer = os.pipe()
    data = os.urandom(40_000)
    os.write(writer, data)
    yield
    found = b""
    while len(found) < len(data):
        found += os.read(reader, len(data))
    expect(found == data, True)
    os.close(writer)
    expect(os.read(reader, 1), b"")
    os.close(reader)


def event_counter():
    fd = os.eventfd(7)
    yield
    expect(os.eventfd_read(fd), 7)
    os.close(fd)


def unix_pair_with_a_descriptor_under_way():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reader, writer = os.pipe()
    rights = array.array("i", [reader])
    ours.sendmsg([b"here"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(reader)
    os.write(writer, b"through")
    yield
    data, control, _, _ = theirs.recvmsg(10, socket.CMSG_SPACE(4))
    expect(data, b"here")
    received = struct.unpack("i", control[0][2][:4])[0]
    expect(os.read(received, 10), b"through")
    theirs.sendall(b"back")
    expect(ours.recv(10), b"back")
    for fd in (received, writer):
        os.close(fd)
    ours.close()
    theirs.close()


def unix_listener_with_a_caller():
    path = os.path.join(tempfile.mkdtemp(), "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(path)
        listener.listen()
        caller.connect(path)
        caller.sendall(b"anybody?")
        yield
        accepted, _ = listener.accept()
        expect(accepted.recv(20), b"anybody?")
        accepted.close()
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(path)


def tcp_within():
    listener = socket.create_server(("127.0.0.1", 0))
    caller = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    waiting = socket.create_connection(listener.getsockname())
    caller.sendall(b"to")
    accepted.sendall(b"fro")
    yield
    expect(accepted.recv(10), b"to")
    expect(caller.recv(10), b"fro")
    late, _ = listener.accept()
    expect(late.getpeername(), waiting.getsockname())
    for end in (listener, caller, accepted, waiting, late):
        end.close()


def datagram_within():
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(PATIENCE)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"waiting", receiver.getsockname())
    yield
    expect(receiver.recv(20), b"waiting")
    receiver.close()
    sender.close()


def epoll_with_a_waiter():
    poll = select.epoll()
    event, (reader, writer) = os.eventfd(0), os.pipe()
    poll.register(event, select.EPOLLIN | select.EPOLLET)
    poll.register(reader, select.EPOLLIN | select.EPOLLONESHOT)
    seen = []
    waiter = threading.Thread(target=lambda: [seen.extend(poll.poll()) for _ in range(2)], daemon=True)
    waiter.start()
    yield
    expect(seen, [])
    os.eventfd_write(event, 1)
    until("the first event", lambda: len(seen) == 1)
    os.write(writer, b"x")
    until("the second event", lambda: len(seen) == 2)
    expect(sorted(fd for fd, _ in seen), sorted([event, reader]))
    waiter.join(PATIENCE)
    poll.close()
    for fd in (event, reader, writer):
        os.close(fd)


def timer(first, every):
    """A timerfd."""
    fd = call("timerfd_create", time.CLOCK_MONOTONIC, 0)
    whole = struct.pack("llll", int(every), int(every % 1 * 1e9), int(first), int(first % 1 * 1e9))
    call("timerfd_settime", fd, 0, whole, None)
    return fd


def timers():
    often, far, soon = timer(0.02, 0.02), timer(3600, 0), timer(0.5, 0)
    signal.setitimer(signal.ITIMER_REAL, 7200)
    fired = threading.Event()
    threading.Timer(1, fired.set).start()
    yield
    os.read(often, 8)
    expect(struct.unpack("Q", os.read(often, 8))[0] >= 1, True)
    expect(struct.unpack("Q", os.read(soon, 8))[0], 1)
    left = ctypes.create_string_buffer(32)
    call("timerfd_gettime", far, left)
    expect(0 < struct.unpack("llll", left.raw)[2] <= 3600, True)
    expect(0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 7200, True)
    expect(fired.wait(PATIENCE), True)
    for fd in (often, far, soon):
        os.close(fd)


def pending_signals():
    # Blocked in every thread since the start.
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGRTMIN)
    os.kill(os.getpid(), signal.SIGRTMIN)
    yield
    expect({signal.SIGUSR1, signal.SIGRTMIN} <= signal.sigpending(), True)
    for wanted in (signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMIN):
        expect(signal.sigtimedwait([wanted], PATIENCE).si_signo, wanted)
    expect(signal.sigtimedwait([signal.SIGUSR1, signal.SIGRTMIN], 0), None)


def signal_handler():
    before = len(HANDLED)
    yield
    os.kill(os.getpid(), signal.SIGUSR2)
    until("the handler", lambda: len(HANDLED) == before + 1)


def threads():
    barrier = threading.Barrier(17)
    own = threading.local()
    found = []

    def wait(number):
        own.number = number
        barrier.wait()
        found.append(own.number)

    for number in range(16):
        threading.Thread(target=wait, args=(number,), daemon=True).start()
    until("the threads", lambda: barrier.n_waiting == 16)
    yield
    barrier.wait(PATIENCE)
    until("all threads", lambda: len(found) == 16)
    expect(sorted(found), list(range(16)))


def child_processes():
    shared = mmap.mmap(-1, 4096)
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    zombie = os.fork()
    if zombie == 0:
        os._exit(7)
    child = os.fork()
    if child == 0:
        # What it inherited keeps other checks' pipes open.
        for fd in set(map(int, os.listdir("/proc/self/fd"))) - {0, 1, 2, to_read, from_write}:
            try:
                os.close(fd)
            except OSError:
                pass
        while data := os.read(to_read, 100):
            shared[:5] = b"child"
            os.write(from_write, data.upper())
        os._exit(0)
    yield
    os.write(to_write, b"hello")
    expect(os.read(from_read, 100), b"HELLO")
    expect(shared[:5], b"child")
    expect(os.waitpid(zombie, 0), (zombie, 7 << 8))
    os.kill(child, signal.SIGKILL)
    expect(os.waitpid(child, 0), (child, 9))
    for fd in (to_read, to_write, from_read, from_write):
        os.close(fd)


def terminal():
    master, slave = pty.openpty()
    tty.setraw(slave)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    os.write(master, b"typed")
    yield
    expect(os.read(slave, 10), b"typed")
    expect(struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2], (33, 99))
    os.close(master)
    os.close(slave)


def watched_folder():
    folder = tempfile.mkdtemp()
    fd = call("inotify_init1", 0)
    call("inotify_add_watch", fd, folder.encode(), 0x100)
    yield
    os.close(os.open(os.path.join(folder, "new"), os.O_CREAT | os.O_WRONLY))
    expect(select.select([fd], [], [], PATIENCE)[0], [fd])
    expect(os.read(fd, 4096)[16:].rstrip(b"\0"), b"new")
    os.close(fd)


def process_settings():
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    old = os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_NOFILE, (777, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    LIBC.prctl(15, b"world-of-one", 0, 0, 0)
    pid, parent = os.getpid(), os.getppid()
    yield
    expect(os.getcwd(), folder)
    expect(os.umask(old), 0o027)
    expect(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 777)
    expect((os.getpid(), os.getppid()), (pid, parent))


class World:
    def __init__(self, volumes):
        self.folders = {"rootfs": "/var/tmp", "tmpfs": "/dev/shm", **volumes}
        self.armed = {}
        self.kept = []
        self.lock = threading.Lock()
        self.received, self.hash = 0, hashlib.sha256()
        self.serve(ECHO_PORT, self.echo)
        self.serve(STREAM_PORT, self.count)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("0.0.0.0", ECHO_PORT))
        threading.Thread(target=self.echo_datagrams, args=(datagrams,), daemon=True).start()

    def checks(self):
        for name, folder in self.folders.items():
            for check in (open_file, unlinked_file, mapped_file, folder_handle):
                yield f"{check.__name__} in {name}", check(folder)
        for check in (locked_file, memory_file, pipe_with_data, event_counter, unix_pair_with_a_descriptor_under_way,
                      unix_listener_with_a_caller, tcp_within, datagram_within, epoll_with_a_waiter, timers,
                      pending_signals, signal_handler, threads, child_processes, terminal, watched_folder,
                      process_settings):
            yield check.__name__, check()

    def arm(self):
        self.armed = {}
        for name, check in self.checks():
            try:
                next(check)
            except Exception as error:
                raise OSError(f"{name}: {error!r}") from error
            self.armed[name] = check
        return len(self.armed)

    def check(self):
        verdicts = {}
        for name, check in self.armed.items():
            try:
                next(check, None)
                verdicts[name] = "ok"
            except Exception as error:
                verdicts[name] = repr(error)
        self.armed = {}
        return verdicts

    def serve(self, port, handle):
        listener = socket.create_server(("0.0.0.0", port))

        def accept():
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def echo(self, connection):
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(line)

    def echo_datagrams(self, datagrams):
        while True:
            data, sender = datagrams.recvfrom(2048)
            datagrams.sendto(data, sender)

    def count(self, connection):
        with connection:
            while data := connection.recv(65536):
                with self.lock:
                    self.received += len(data)
                    self.hash.update(data)


class Handler(BaseHTTPRequestHandler):
    world = None

    def log_message(self, format, *args):
        pass

    def answer(self):
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        world = self.world
        match url.path:
            case "/answer":
                return {"answer": 42}
            case "/arm":
                return {"armed": world.arm()}
            case "/check":
                return world.check()
            case "/read":
                with open(query["path"]) as file:
                    return {"text": file.read()}
            case "/hold":
                world.kept.append(open(query["path"]))
                return {"held": len(world.kept)}
            case "/held":
                return [os.pread(file.fileno(), 4096, 0).decode() for file in world.kept]
            case "/received":
                with world.lock:
                    return {"bytes": world.received, "sha256": world.hash.hexdigest()}
            case "/clock":
                return {"clock": time.time(), "monotonic": time.monotonic()}
        raise KeyError(url.path)

    def do_GET(self):
        try:
            value, status = self.answer(), 200
        except Exception as error:
            value, status = {"error": repr(error)}, 500
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    # Before any thread: what nobody lets in stays pending.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
    signal.signal(signal.SIGUSR2, lambda *_: HANDLED.append(1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    volumes = dict(argument.split("=", 1) for argument in sys.argv[1:])
    Handler.world = World(volumes)
    print("listening", flush=True)
    Server(("0.0.0.0", 8080), Handler).serve_forever()


if __name__ == "__main__":
    main()
