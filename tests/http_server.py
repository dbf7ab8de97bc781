"""A small real web server on this machine that serves files as GitHub and Kaggle do, and misbehaves on request."""

import contextlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

PAGE = b"<!DOCTYPE html><html><body>Please log in to the network.</body></html>"
ARCHIVE = "archive.zip"  # what the address of a Kaggle data set leads to


class Server:
    """Serves {path: bytes} under /owner/name/commit/.

    Attributes
    ----------
    address : str
        For `$CXR_MIRROR`.
    files : dict
        May be changed at any time. `ARCHIVE` is what Kaggle's address redirects to.
    requests : list
        (path, Range header or None) of each request, in the order of arrival; a POST to Kaggle's API is "kaggle".
    meeting : threading.Barrier or None
        When set, each request waits there for the others: proof that they overlap.
    """

    def __init__(self, files, *, repository="owner/name", commit="c" * 40):
        self.files, self.prefix = dict(files), f"/{repository}/{commit}/"
        self.requests, self.meeting, self.faults, self.met = [], None, {}, {}
        self.arrived, self.closing = threading.Event(), threading.Event()

    def __enter__(self):
        self.http = _Http(("127.0.0.1", 0), _Handler)
        self.http.ours = self
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def use(self, monkeypatch):
        """Let `utils.download` load from here."""
        monkeypatch.setenv("CXR_MIRROR", self.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def use_for_kaggle(self, monkeypatch, home):
        """Let kagglehub load from here, without anybody's log-in; KAGGLE_API_ENVIRONMENT knows only a fixed port."""
        from kagglesdk import kaggle_env

        self.use(monkeypatch)
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, self.address)
        for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_ENVIRONMENT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home))
        monkeypatch.setenv("HOME", str(home))

    def fail(self, path, fault, *, times=None):
        """Misbehave for a path, or for each one ("*"): `times` times each, else always.

        `fault` is a status (an int; 429 and 503 come with `Retry-After: 1`), a key of FAULTS, or a function like those.
        """
        self.faults[path] = fault, times

    def heal(self):
        """Serve everything well again."""
        self.faults.clear()

    def asked(self, path):
        """Return the Range header of each request for a path."""
        return [header for name, header in self.requests if name == path]

    def fault(self, path):
        """Return the fault to show for a request, if any, and count it."""
        fault, times = self.faults.get(path) or self.faults.get("*") or (None, None)
        self.met[path] = self.met.get(path, 0) + (fault is not None)
        return fault if times is None or self.met[path] <= times else None


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that leave early are what some tests want
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        ours = self.server.ours
        ours.requests.append(("kaggle", None))
        if fault := ours.fault("kaggle"):
            text = json.dumps({"code": fault, "message": "no"}).encode()
            self.answer(fault, text, {"Content-Type": "application/json"})
        else:
            self.answer(302, b"", {"Location": ours.prefix + ARCHIVE})

    def do_GET(self):
        ours = self.server.ours
        path = unquote(self.path).removeprefix(ours.prefix)
        ours.requests.append((path, self.headers.get("Range")))
        ours.arrived.set()
        if ours.meeting:
            with contextlib.suppress(threading.BrokenBarrierError):
                ours.meeting.wait(timeout=5)
        fault = ours.fault(path)
        if isinstance(fault, int):
            self.answer(fault, b"no", {"Retry-After": "1"} if fault in (429, 503) else {})
        elif path not in ours.files:
            self.answer(404, b"no")
        elif fault:
            FAULTS.get(fault, fault)(self, ours.files[path])
        else:
            self.serve(ours.files[path])

    def answer(self, status, data, headers=(), *, announced=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if announced is None else announced))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def serve(self, data, *, sent=1.0, shift=0):
        """Serve a file or the range that was asked for; `sent` is the share of it after which the line breaks."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if asked and start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked:
            headers["Content-Range"] = f"bytes {start + shift}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        self.close_connection = sent < 1
        self.answer(206 if asked else 200, rest[: int(len(rest) * sent)], headers, announced=len(rest))

    def serve_endless(self, data):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.ours.closing.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def serve_slowly(self, data):
        self.close_connection = True
        self.answer(200, b"", announced=len(data))
        for number in range(len(data)):
            if self.server.ours.closing.wait(0.02):
                return
            self.wfile.write(data[number : number + 1])

    def serve_unannounced(self, data):
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def serve_nothing(self, data):
        self.close_connection = True
        self.server.ours.closing.wait(20)


def _without_range(handler, data):
    handler.answer(200, data)


FAULTS = {
    "breaks off": lambda handler, data: handler.serve(data, sent=0.5),
    "breaks off, no length": _Handler.serve_unannounced,
    "redirects": lambda handler, data: handler.answer(302, b"", {"Location": handler.path}),
    "html": lambda handler, data: handler.answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"}),
    "longer": lambda handler, data: handler.answer(200, data + b"and more"),
    "endless": _Handler.serve_endless,
    "other content": lambda handler, data: handler.serve(bytes(255 - byte for byte in data)),
    "no range": _without_range,
    "wrong range": lambda handler, data: handler.serve(data, shift=1 if handler.headers.get("Range") else 0),
    "refuses range": lambda handler, data: (
        handler.answer(416, b"") if handler.headers.get("Range") else handler.serve(data)
    ),
    "drips": _Handler.serve_slowly,
    "hangs": _Handler.serve_nothing,
}


def contents(folder):
    """Return {path: bytes} of all files but the lock."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".lock"}
