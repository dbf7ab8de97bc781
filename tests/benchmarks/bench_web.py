"""How fast the web app answers, over HTTP, for one client and for fifty at once.

    .venv/bin/python tests/benchmarks/bench_web.py [--seconds 60]

The server is the one of `make app`, in a process of its own, with the bundle that is part of the course. Clients are
threads of this process on the same cores, each with a connection that stays open, and each sends the next request when
it has the answer to the last. Every answer is compared with what the classifier says of the same image without any web:
a wrong or lost one ends the run with exit code 1.

- 1 file: PNG of 512 x 512, a simulated X-ray, one in a request. 8 files: as the page sends many. Grad-CAM: one file
  with its pictures, as the page asks for a single one.
- p50, p95: ms from sending a request to having its answer; images/s: over all clients, first to last answer.
- 503: requests turned away because too many images wait; the client comes again when it was told to, as the page does,
  and the time until then counts for images/s alone.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402  (after the repository is on the path)
import requests  # noqa: E402
from web_app import radiographs  # noqa: E402

from utils.classifier import Classifier  # noqa: E402

WAYS = [("1 file", 1, "", 1, 0.15), ("1 file, Grad-CAM", 1, "?gradcam=1", 1, 0.15), ("1 file", 1, "", 50, 0.3),
        ("8 files", 8, "", 50, 0.2), ("1 file, Grad-CAM", 1, "?gradcam=1", 50, 0.2)]  # fmt: skip


class Server:
    """`python -m utils.web` on a free port."""

    def __enter__(self):
        environ = {**os.environ, "HOST": "", "PORT": "0"}
        command = [sys.executable, "-m", "utils.web"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        return re.search(r"http://[^/]+", self.process.stdout.readline())[0]

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def client(number, address, count, query, files, expected, ready, until):
    """Send requests until the time is over; return the ms of each answer, and how often it was turned away."""
    times, full, rng = [], 0, np.random.default_rng(number)
    with requests.Session() as session:
        session.get(f"{address}/healthz")
        ready.wait()
        place = number
        while time.perf_counter() < until[0]:
            chosen = [(place + step) % len(files) for step in range(count)]
            sent = [("file", (str(one), files[one])) for one in chosen]
            start = time.perf_counter()
            answer = session.post(f"{address}/api/predict{query}", files=sent, timeout=120)
            if answer.status_code == 503:
                full += 1
                time.sleep(float(answer.headers["Retry-After"]) * rng.uniform(0.5, 1.5))
                continue
            times.append(1000 * (time.perf_counter() - start))
            check(answer, chosen, expected)
            place += count
    return times, full


def check(answer, chosen, expected):
    """Raise where an answer is not the one for its images."""
    rows = answer.json()
    assert answer.status_code == 200, rows
    assert [row["path"] for row in rows] == [str(one) for one in chosen], rows
    for one, row in zip(chosen, rows):
        assert all(row[name] == expected[one][name] for name in ("sha256", "decision")), row
        assert row["refused"] or abs(row["p_Normal"] - expected[one]["p_Normal"]) < 1e-5, row


def measure(address, way, files, expected, seconds):
    """Print one line of the table."""
    name, count, query, clients, share = way
    until = [0.0]
    begin = lambda: until.__setitem__(0, time.perf_counter() + share * seconds)  # noqa: E731
    ready = threading.Barrier(clients, action=begin)
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        common = address, count, query, files, expected, ready, until
        found = list(pool.map(lambda number: client(number, *common), range(clients)))
        took = time.perf_counter() - start
    times = [one for some, _ in found for one in some]
    p50, p95 = np.percentile(times, (50, 95))
    print(f"| {clients} | {name} | {len(times)} | {p50:.0f} | {p95:.0f} | {count * len(times) / took:.0f} | "
          f"{sum(full for _, full in found)} |")  # fmt: skip


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all measurements together")
    args = parser.parse_args()
    if args.seconds <= 0:
        parser.error("no time, nothing to measure")
    files = radiographs(50, size=512)
    classifier = Classifier()
    expected = classifier.rows([("", classifier.look(data)) for data in files])
    with Server() as address:
        for query in ("", "?gradcam=1"):  # the first request of its kind wakes TensorFlow
            requests.post(f"{address}/api/predict{query}", files={"file": files[0]}, timeout=60)
        size, load = np.mean([len(data) for data in files]) / 1000, os.getloadavg()[0]
        machine = f"{os.cpu_count()} cores, load {load:.1f}"
        print(f"{len(files)} images of {size:.0f} KB; {machine}; every answer is compared\n")
        print("| Clients | Request | Answers | p50, ms | p95, ms | images/s | 503 |")
        print("|---" * 7 + "|")
        for way in WAYS:
            measure(address, way, files, expected, args.seconds)


if __name__ == "__main__":
    main()
