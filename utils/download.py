"""Downloads of GitHub's sets, file by file from a pinned commit.

What is in its place is whole and checked: files arrive under a hidden name and are moved. What a killed run or a broken
connection leaves is gone on with. Two runs at once: the second waits for the first.
"""

import csv
import errno
import hashlib
import logging
import os
import queue
import re
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from uuid import uuid4

from filelock import FileLock, Timeout
from tqdm import tqdm

from utils.errors import CourseError

GITHUB = "https://raw.githubusercontent.com"
_CHUNK = 1 << 16
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota error
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
UNKNOWN = 4 * 2**20  # bytes: files above this size have none in the tables, so it stands for theirs
_PROXY = "Behind a proxy, set HTTPS_PROXY."


class Limits(NamedTuple):
    """How patient a download is, and how much it takes."""

    tries: int = 5  # of one file
    pause: float = 1.0  # seconds before the second try, doubled each time
    connect: float = 10.0  # seconds without a connection
    read: float = 30.0  # seconds without a byte
    seconds: float = 60.0  # in which some of a file must come: a server may drip for ever
    least: int = 60_000  # bytes of a file in that time; a slow line with eight files at a time gives more
    most: int = 64 * 2**20  # bytes of a file whose size the table does not know
    workers: int = 8  # files at a time


LIMITS = Limits()


class Pin(NamedTuple):
    """One file of a repository: its path, its size in bytes (None: unknown) and its git blob id."""

    path: str
    size: int | None
    blob: str


class Pins(NamedTuple):
    """A repository ("owner/name") at a commit, with its files as {path: Pin}."""

    repository: str
    commit: str
    files: dict


class _Again(Exception):
    """A failure that may pass; the message says what came, `wait` how many seconds the server asks for."""

    def __init__(self, came, wait=0.0):
        super().__init__(came)
        self.wait = wait


class _Stopped(Exception):
    """Another file has failed, or the user has interrupted."""


def read_pins(file):
    """Read a table of pinned files.

    Parameters
    ----------
    file : path-like
        CSV: a line `# owner/name at commit <40 hex digits>; ...`, then the columns path, bytes, id.

    Returns
    -------
    Pins

    Raises
    ------
    ValueError
        The first line or an id is not such, or a path leads out of the folder.
    """
    with open(file, encoding="utf-8", newline="") as lines:
        head = re.match(r"# ([\w.-]+/[\w.-]+) at commit ([0-9a-f]{40})\b", lines.readline())
        if not head:
            raise ValueError(f"{file}: expected `# owner/name at commit <40 hex digits>` in the first line.")
        files = {}
        for row in csv.DictReader(lines):
            if leads_out(row["path"]) or not re.fullmatch("[0-9a-f]{40}", row["id"]):
                raise ValueError(f"{file}: expected a path inside the repository and an id; got {row}.")
            files[row["path"]] = Pin(row["path"], int(row["bytes"]) if row["bytes"] else None, row["id"])
    return Pins(head[1], head[2], files)


def leads_out(path):
    parts = re.split(r"[\\/]", path)
    return not parts[0] or ".." in parts or any(re.match("[A-Za-z]:", part) for part in parts)


def blob_id(path):
    """Return the id that git gives a file's content: the SHA-1 of "blob", its size, a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % os.path.getsize(path), usedforsecurity=False)
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def missing(pins, paths, folder):
    """Return the Pins of the `paths` that are not below `folder`, or have another size there."""
    wanted = [pins.files[path] for path in dict.fromkeys(paths)]
    return [pin for pin in wanted if not is_there(Path(folder, pin.path), pin.size)]


def total_size(wanted):
    """Return how many bytes Pins have together, about: see UNKNOWN."""
    return sum(UNKNOWN if pin.size is None else pin.size for pin in wanted)


def is_there(path, size):
    if not path.is_file():
        return False
    return path.stat().st_size == size if size is not None else path.stat().st_size >= UNKNOWN


def fetch(pins, paths, folder, *, limits=None):
    """Download files of a repository, several at a time, each checked against its id before it is in its place.

    Parameters
    ----------
    pins : Pins
    paths : iterable of str
        Keys of `pins.files`. What is there in the right size is not fetched again.
    folder : path-like
        Where they go, with the repository's sub-folders.
    limits : Limits, optional
        LIMITS when not given.

    Raises
    ------
    CourseError
        No network, a file that does not come or is another one, no room, a folder that cannot be written. The files
        that have come stay, and the next run goes on from there. `$CXR_MIRROR` replaces GitHub's address.
    """
    folder, paths, limits = Path(folder), list(dict.fromkeys(paths)), limits or LIMITS
    if not missing(pins, paths, folder):  # before anything is written: a shared folder may be read-only
        return
    with locked(folder):
        wanted = missing(pins, paths, folder)  # another run may have brought them
        require_room(folder, total_size(wanted))
        try:
            _Fetch(pins, folder, limits).run(wanted)
        except CourseError as error:
            done = len(paths) - len(missing(pins, paths, folder))
            raise CourseError(
                f"{error}\n{done} of {len(paths)} files are in place in {folder} and are kept: run again to go on from "
                "there."
            ) from None
        shutil.rmtree(folder / ".parts", ignore_errors=True)


class _Fetch:
    """What the threads of one `fetch` share."""

    def __init__(self, pins, folder, limits):
        base = (os.environ.get("CXR_MIRROR") or GITHUB).rstrip("/")
        self.base = f"{base}/{pins.repository}/{pins.commit}"
        self.host = urlsplit(base).netloc.rpartition("@")[2] or base  # without a password
        self.folder, self.limits, self.name = folder, limits, pins.repository
        self.parts = folder / ".parts" / uuid4().hex
        self.stop, self.todo, self.done = threading.Event(), queue.SimpleQueue(), queue.SimpleQueue()

    def run(self, wanted):
        same = {}
        for pin in wanted:
            same.setdefault(pin.blob, []).append(pin)  # equal files share a part: one after the other
        for pins in same.values():
            self.todo.put(pins)
        with writing(self.folder):
            self.adopt()
        # A thread may hang in the network for `read` seconds: a daemon is not waited for. When it wakes up, it finds
        # `stop` set, and no folder of parts.
        count = min(self.limits.workers, len(same))
        threads = [threading.Thread(target=self.work, name="download", daemon=True) for _ in range(count)]
        total = total_size(wanted)
        bar = tqdm(
            total=total,
            desc=self.name,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=bool(os.environ.get("CXR_QUIET")),
        )
        try:
            for thread in threads:
                thread.start()
            for _ in wanted:
                bar.update(self.next_size())
        finally:
            self.stop.set()
            bar.close()
            end = time.monotonic() + 1
            for thread in threads:
                if thread.ident:
                    thread.join(max(0, end - time.monotonic()))

    def adopt(self):
        """Make a folder of parts for this run alone, and take over what earlier runs have left."""
        self.parts.mkdir(parents=True)
        for older in self.parts.parent.iterdir():
            if older != self.parts:
                for part in older.iterdir():
                    os.replace(part, self.parts / part.name)
                older.rmdir()

    def next_size(self):
        """Wait for a file and return its size, or raise what stopped it."""
        while True:
            try:
                result = self.done.get(timeout=0.5)  # on Windows, Ctrl-C does not end a wait without a limit
            except queue.Empty:
                continue
            if isinstance(result, Exception):
                raise result
            return result

    def work(self):
        import requests

        with requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"  # a range of a compressed file would fit nothing
            while not self.stop.is_set():
                try:
                    for pin in self.todo.get_nowait():
                        self.done.put(self.bring(session, pin))
                except (queue.Empty, _Stopped):
                    return
                except Exception as error:
                    self.done.put(error)
                    return

    def bring(self, session, pin):
        """Bring one file to its place, with as many tries as allowed; return its size."""
        part = self.parts / pin.blob
        for number in range(self.limits.tries):
            try:
                with writing(self.folder, part):
                    return self.try_once(session, pin, part)
            except _Again as error:
                failure = error
            last = number + 1 == self.limits.tries
            if not last and self.stop.wait(max(failure.wait, self.limits.pause * 2**number)):
                raise _Stopped
        raise self.error(pin, f"{failure}, at the last of {self.limits.tries} tries. {_PROXY}")

    def error(self, pin, came):
        size = "a file" if pin.size is None else f"{pin.size} bytes"
        return CourseError(f"{pin.path}: expected {size} from {self.host}; {came}")

    def try_once(self, session, pin, part):
        while True:
            resumed = self.receive(session, pin, part)
            if self.stop.is_set():
                raise _Stopped
            found, size = blob_id(part), part.stat().st_size
            if found == pin.blob:
                target = self.folder / pin.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
                return size
            part.unlink()
            if not resumed:  # else the older bytes may be to blame: once more, from the start
                raise self.error(
                    pin,
                    f"{size} bytes with another content came (id {found}, expected {pin.blob}), and "
                    "were thrown away. Something between here and there changes files.",
                )

    def receive(self, session, pin, part):
        """Complete a part, or start it anew; return whether it holds bytes of an earlier try."""
        have = part.stat().st_size if part.exists() else 0
        if have and have >= (self.limits.most if pin.size is None else pin.size):
            return True
        with self.ask(session, pin, have) as response:
            resumed = response.status_code == 206
            if response.status_code == 200 or resumed and _starts_at(response, have):
                self.store(response, pin, part, have if resumed else 0)
                return resumed
        part.unlink()  # the server has no such range: without a part the next request asks for none
        return self.receive(session, pin, part)

    def ask(self, session, pin, have):
        import requests

        headers = {"Range": f"bytes={have}-"} if have else {}
        times = self.limits.connect, self.limits.read
        try:
            response = session.get(f"{self.base}/{quote(pin.path)}", headers=headers, stream=True, timeout=times)
        except requests.TooManyRedirects:
            raise self.error(pin, "it redirects from address to address without end.") from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(f"{self.host} cannot be reached ({reason(error)})") from None
        except requests.RequestException as error:
            raise self.error(pin, f"the request failed ({error}). Is CXR_MIRROR right, if it is set?") from None
        status = response.status_code
        if status == 429 or status >= 500:
            response.close()
            raise _Again(f"the answer was {status} {response.reason}", _retry_after(response))
        if status not in ((200, 206, 416) if have else (200,)):
            response.close()
            raise self.error(pin, f"the answer was {status} {response.reason}. {_PROXY}")
        if response.headers.get("Content-Type", "").startswith("text/html") and ".htm" not in pin.path:
            response.close()
            raise self.error(
                pin,
                "a web page came instead of the file, perhaps the log-in page of a network. Open a "
                "browser, log in, and run again.",
            )
        return response

    def store(self, response, pin, part, have):
        import urllib3

        if self.stop.is_set():
            raise _Stopped
        most = self.limits.most if pin.size is None else pin.size
        size, too_long = have, have + (response.raw.length_remaining or 0) > most
        slow = _Slow(self.limits, have)
        try:
            with open(part, "ab" if have else "wb") as file:
                # read1 returns what has come: a server that drips is noticed. `read` would wait for a whole chunk.
                while not too_long and (data := response.raw.read1(_CHUNK)):
                    if self.stop.is_set():
                        raise _Stopped
                    size, too_long = size + len(data), size + len(data) > most
                    if slow.is_slow(size):
                        raise self.error(
                            pin, f"hardly anything comes any more, {size} in all: a slow line, or a server in trouble."
                        )
                    file.write(b"" if too_long else data)
                file.flush()
                os.fsync(file.fileno())  # or a power cut might leave an empty file with a good name
        except urllib3.exceptions.HTTPError as error:
            raise _Again(f"the transfer broke off after {size} bytes ({type(error).__name__})") from None
        if too_long:
            part.unlink()
            raise self.error(pin, f"more than {most} came, and were thrown away.")
        if size < (pin.size or 0) and response.raw.length_remaining is None:  # no length was announced
            raise _Again(f"the transfer ended after {size} bytes")


class _Slow:
    """Tells when too little of a file has come in a while."""

    def __init__(self, limits, size):
        self.limits, self.size, self.end = limits, size, time.monotonic() + limits.seconds

    def is_slow(self, size):
        if time.monotonic() < self.end:
            return False
        if size - self.size < self.limits.least:
            return True
        self.size, self.end = size, time.monotonic() + self.limits.seconds
        return False


def _starts_at(response, have):
    return response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _retry_after(response):
    seconds = response.headers.get("Retry-After", "")
    return min(60.0, float(seconds)) if seconds.isdecimal() else 0.0  # a date: the usual pause will do


def reason(error):
    return str(getattr(error.args[0], "reason", error) if error.args else error).rpartition(": ")[2]


@contextmanager
def writing(folder, *leftovers):
    """Say in words why something cannot be written; on a full disk `leftovers` are deleted."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            advice = "Mend that, and run again."
            if error.errno in _FORBIDDEN and os.environ.get("CXR_DATA_DIR"):
                advice = ("Ask whoever manages the shared folder to fetch the set first, or unset CXR_DATA_DIR: the set "
                          "then goes to the course's own folder.")  # fmt: skip
            place = error.filename or folder
            raise CourseError(f"{place}: cannot be written ({error.strerror or error}). {advice}") from None
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise CourseError(f"{folder}: the disk is full. Make room, and run again.") from None


@contextmanager
def locked(folder):
    lock = FileLock(folder / ".lock")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logging.getLogger(__name__).warning("Another run is downloading into %s: waiting for it.", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_room(folder, size):
    free = shutil.disk_usage(folder).free
    if size * 1.05 > free:
        raise CourseError(
            f"{folder}: the set needs {size * 1.05 / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of the disk are free. "
            "Nothing was fetched. Make room, or point CXR_DATA_DIR at a larger disk."
        )
