"""Waitress, kept to memory: nothing that is sent here reaches the disk, whatever its size, or stays for ever."""

import json
import logging
import sys
import threading
import time
import weakref

import waitress
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import Error, RequestEntityTooLarge

from utils.web import desk
from utils.web.app import RETRY_AFTER, SECURITY
from utils.web.facts import MAX_BYTES

ROOM = 16 * MAX_BYTES  # bytes of request bodies in memory, of all connections together
PATIENCE = 300  # seconds for a request to arrive: 32 MB over 1 MBit/s take 256
SILENCE = 30  # seconds without a byte end a connection
CONNECTIONS = 500  # open at once; others wait for a free one
SPARE = 8  # threads beyond those that wait for answers: for pages, and to say that all others are busy
SAYS = {
    400: "This is no request that the server understands.",
    408: f"The request did not arrive within {PATIENCE} seconds.",
    413: f"More than {MAX_BYTES // 1_000_000} MB in one request: send fewer or smaller files.",
    431: "The header of the request is too long.",
    500: "Something went wrong in the server; it goes on with the next request.",
    501: "The server does not understand this transfer encoding.",
    503: "Too much is being sent at once: try again in a moment.",
}


class _Full(Error):
    code, reason = 503, "Service Unavailable"


class _TooSlow(Error):
    code, reason = 408, "Request Timeout"


class _Room:
    """Bytes that may still be kept in memory."""

    def __init__(self, size):
        self.left, self.lock = size, threading.Lock()

    def take(self, size):
        with self.lock:
            fits = size <= self.left
            self.left -= size if fits else 0
        return fits

    def give_back(self, size):
        with self.lock:
            self.left += size


class _Request(HTTPRequestParser):
    """A request while it arrives."""

    unread = 0  # bytes of a body that nobody will use

    def __init__(self, adj):
        super().__init__(adj)
        self.until = time.monotonic() + PATIENCE

    def received(self, data):
        """Take what has come; return how much of it belonged to this request."""
        if self.unread:
            # A client that is still sending does not listen: hear it out, without keeping anything, and then answer.
            taken = min(len(data), self.unread)
            self.unread -= taken
            self.completed = not self.unread
        else:
            before = self.headers_finished
            taken = super().received(data)
            if self.headers_finished and not before and self.body_rcv is not None:
                self._admit()
        if not self.completed and time.monotonic() > self.until:
            self._end(_TooSlow(""))
        return taken

    def _admit(self):
        size = MAX_BYTES if self.chunked else self.content_length
        if not self.error and self.adj.room.take(size):
            weakref.finalize(self, self.adj.room.give_back, size)  # also after a connection that breaks off
            return
        self._end(self.error or _Full(""))
        if not self.expect_continue and isinstance(self.error, (RequestEntityTooLarge, _Full)):
            self.unread = self.content_length
            self.completed = not self.unread
        self.expect_continue = False

    def _end(self, error):
        self.error, self.completed = error, True


class _Complaint(ErrorTask):
    """The answer to what is no proper request: JSON, with the same headers as every other."""

    def execute(self):
        """Write it, and close the connection."""
        error = self.request.error
        body = json.dumps({"error": SAYS.get(error.code, error.reason)}).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        more = {**SECURITY, "Cache-Control": "no-store", "Content-Type": "application/json"}
        self.response_headers += more.items()
        if error.code == 503:
            self.response_headers.append(("Retry-After", str(RETRY_AFTER)))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    parser_class, error_task_class = _Request, _Complaint

    def handle_close(self):
        """Forget what has come of a request that broke off."""
        self.request = None
        super().handle_close()


def create_server(app, listening):
    """Put an app behind a socket.

    Parameters
    ----------
    app : flask.Flask
    listening : socket.socket
        Bound to its address.

    Returns
    -------
    waitress.server.BaseWSGIServer
        Call its `run`. It has begun to listen.

    Raises
    ------
    OSError
        Somebody else listens there.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that requests wait a moment is no news
    server = waitress.create_server(
        app, sockets=[listening], threads=desk.WAITING + SPARE, ident="",
        inbuf_overflow=sys.maxsize, outbuf_overflow=sys.maxsize,  # bytes in memory before a temporary file is made
        max_request_body_size=MAX_BYTES + 1, max_request_header_size=64_000, recv_bytes=1 << 16,
        connection_limit=CONNECTIONS, asyncore_use_poll=True,  # select knows no more than 1,024 files
        channel_timeout=SILENCE, cleanup_interval=5, log_socket_errors=False,
    )  # fmt: skip
    server.adj.room = _Room(ROOM)  # where Waitress keeps what all connections share
    server.channel_class = _Channel
    return server
