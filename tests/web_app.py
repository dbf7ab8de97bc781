"""The web app in a thread of this process, for the tests that talk to it over HTTP or with a browser."""

import io
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from PIL import Image
from waitress import wasyncore

from utils import phantom
from utils.web.app import create_app
from utils.web.desk import Desk
from utils.web.server import create_server


@contextmanager
def running(classifier, **options):
    """Serve on a free port; yields `address`, `port`, `server`, `desk`. Options go to `Desk`."""
    listening = socket.create_server(("127.0.0.1", 0))
    desk = Desk(classifier, **options)
    server = create_server(create_app(classifier, desk=desk), listening)
    loop = threading.Thread(target=server.run, daemon=True)
    loop.start()
    port = listening.getsockname()[1]
    try:
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}", port=port, server=server, desk=desk)
    finally:
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
        loop.join(10)
        desk.close()


def until(condition, seconds=10):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.005)


def png(pixels):
    """Return pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def radiographs(count, *, size=160, seed=41):
    """Return PNG files of simulated X-rays, Normal and COVID-19 in turn."""
    patients = [phantom.make_patient(i, seed=seed, label=phantom.LABELS[i % 2]) for i in range(count)]
    return [png(phantom.take_radiograph(patient, 0, size=size).image) for patient in patients]


def photograph():
    """Return a picture that is evidently no X-ray, as PNG."""
    y, x = np.mgrid[:200, :260]
    return png(np.dstack([x * 255 // 260, 120 + 60 * np.sin(y / 15), 255 - y]).astype(np.uint8))
