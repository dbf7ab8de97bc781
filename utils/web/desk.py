"""One desk for all requests: threads read their files, one thread asks the models about whatever waits."""

import logging
import os
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

from utils.classifier import Look
from utils.errors import CourseError, one_line
from utils.files import sha256
from utils.web import pictures

BATCH = 64  # images in one call of the models
WAITING = 128  # images at most between arrival and answer: beyond, a request is turned away and told to come again
NO_PICTURES = {"image": "", "heat": ""}
logger = logging.getLogger(__name__)


class Busy(Exception):
    """Too many images wait already."""


class Desk:
    """Answers for files, from many threads at once.

    Parameters
    ----------
    classifier : utils.classifier.Classifier
    waiting : int
        Images that may be here at once; one request's files come in together or not at all.
    """

    def __init__(self, classifier, *, waiting=WAITING):
        self.classifier, self.waiting = classifier, waiting
        self._here, self._counting = 0, threading.Lock()
        self._asked = queue.Queue()  # bounded by `waiting`, which counts images while they are read, too
        self._drawing = threading.Lock()  # a heat map takes all cores: two at once would only be slower
        self._readers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="reader")
        self._asker = threading.Thread(target=self._ask, name="asker", daemon=True)
        self._asker.start()

    @property
    def alive(self):
        """True while there is somebody to answer."""
        return self._asker.is_alive()

    def answer(self, files, *, gradcam=False):
        """Read files and ask the models about them.

        Parameters
        ----------
        files : sequence of (str, bytes)
            Names and contents.
        gradcam : bool
            Add to each row `image`, the X-ray as prepared, and `heat`, the Grad-CAM of the class that is called: PNG
            images as data URLs, "" where there is none.

        Returns
        -------
        list of dict
            As `Classifier.rows`, in the order of the files.

        Raises
        ------
        Busy
            Nothing was read.
        """
        with self._admitted(len(files)):
            looks = [self._readers.submit(self._look, data) for _, data in files]
            rows = [self._queued(name, look.result()) for (name, _), look in zip(files, looks)]
            rows = [row.result() for row in rows]
            if not gradcam:
                return rows
            looks = [look.result() for look in looks]
            return [row | self._pictures(row, look, data) for row, look, (_, data) in zip(rows, looks, files)]

    def close(self):
        """End the threads, when nobody asks any more."""
        self._readers.shutdown(wait=False)
        self._asked.put(None)

    def _look(self, data):
        try:
            return self.classifier.look(data)
        except Exception as error:  # whatever a decoder's surprise is, the other files shall have their answers
            logger.error("%s while a file was read", type(error).__name__)
            reason = one_line(error) if isinstance(error, CourseError) else type(error).__name__
            return Look(sha256(data), error=f"cannot be read ({reason})")

    @contextmanager
    def _admitted(self, count):
        with self._counting:
            if self._here + count > self.waiting:
                raise Busy
            self._here += count
        try:
            yield
        finally:
            with self._counting:
                self._here -= count

    def _queued(self, name, look):
        row = Future()
        self._asked.put((name, look, row))
        return row

    def _ask(self):
        while batch := self._next():
            try:
                rows = self.classifier.rows([(name, look) for name, look, _ in batch])
            except Exception as error:  # each request says so; this thread must live on
                for *_, waiting in batch:
                    waiting.set_exception(error)
            else:
                for (*_, waiting), row in zip(batch, rows, strict=True):
                    waiting.set_result(row)

    def _next(self):
        """Wait for an image, and take with it what else is there."""
        batch = [self._asked.get()]
        with suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._asked.get_nowait())
        return [] if None in batch else batch

    def _pictures(self, row, look, data):
        if look.error:
            return NO_PICTURES
        prepared = self._readers.submit(pictures.prepared, data, self.classifier.members[0].options).result()
        if not row["decision"]:
            return {"image": pictures.data_url(prepared), "heat": ""}
        with self._drawing:
            heat = self.classifier.heat(look, row["decision"])
        heat = pictures.data_url(pictures.coloured(heat)) if heat.any() else ""
        return {"image": pictures.data_url(prepared), "heat": heat}
