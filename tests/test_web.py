"""The web app over HTTP: its interface, its limits, and clients that are many, slow, broken or malicious."""

import base64
import copy
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import requests
from bad_files import FOLDER, LAST, ROWS, SOUND, encoded
from bad_input import picture
from web_app import photograph, radiographs, running, until

from utils import config, models, predict
from utils.classifier import PURPOSE, Classifier
from utils.errors import CourseError
from utils.files import sha256
from utils.web import __main__ as command
from utils.web import desk as desks
from utils.web import facts, pictures
from utils.web import server as servers
from utils.web.app import create_app

CLAIM = PURPOSE.capitalize()
STRICT = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
BY_NAME = ("name that is not UTF-8", "hidden file")  # sound images: over HTTP, names do not matter
XRAYS = radiographs(6)


@pytest.fixture(scope="module")
def classifier():
    return Classifier()


@pytest.fixture(scope="module")
def web(classifier):
    with running(classifier) as web:
        yield web


@pytest.fixture(scope="module")
def expected(classifier):
    """What the models say of the X-rays, asked without any web."""
    return classifier.rows([("", classifier.look(data)) for data in XRAYS])


def ask(web, *files, query="", **options):
    """Send files: contents, or (name, content)."""
    named = [one if isinstance(one, tuple) else (f"{number}.png", one) for number, one in enumerate(files)]
    form = [("file", one) for one in named]
    return requests.post(f"{web.address}/api/predict{query}", files=form, timeout=60, **options)


def same(row, other):
    """Compare two answers but for the names of the files."""
    for name in set(row) | set(other):
        if name.startswith("p_") and row[name] is not None and other[name] is not None:
            assert abs(row[name] - other[name]) < 1e-5
        elif name != "path":
            assert row[name] == other[name], name
    return True


def form(*files, end=True, boundary="frontier"):
    """Put a multipart body together by hand; files are (name, content), names stand as they are."""
    top = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="'.encode()
    parts = [top + name + b'"\r\n\r\n' + data for name, data in files]
    return b"\r\n".join(parts) + (f"\r\n--{boundary}--\r\n".encode() if end else b"")


def head(length, *more, path="/api/predict"):
    lines = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=frontier",
             f"Content-Length: {length}", *more)  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Client:
    """A raw connection."""

    def __init__(self, web, data=b""):
        self.socket = socket.create_connection(("127.0.0.1", web.port), timeout=20)
        self.socket.sendall(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """Read one answer: status, headers (text), what is in its JSON."""
        data = b""
        while b"\r\n\r\n" not in data:
            got = self.socket.recv(1 << 16)
            assert got, "the connection ended without an answer"
            data += got
        top, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", top)[1])
        while len(body) < length:
            body += self.socket.recv(1 << 16)
        return int(top.split()[1]), top.decode(), json.loads(body)

    def ended(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


# Answers


def test_answers_are_those_of_the_command_line(web, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    files = [*XRAYS, photograph(), b"text"]
    for number, data in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(data)
    paths = [str(tmp_path / f"{number}.png") for number in range(len(files))]
    assert predict.main([*paths, "--out", str(tmp_path / "out.jsonl")]) == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answer = ask(web, *files)
    assert answer.status_code == 200 and len(answer.json()) == len(lines) == 8
    for number, (row, line) in enumerate(zip(answer.json(), lines)):
        assert list(row) == list(line) and row["path"] == f"{number}.png" and same(row, line)
    kinds = [(bool(row["decision"]), bool(row["refused"]), bool(row["error"])) for row in lines]
    assert kinds == [(True, False, False)] * 6 + [(False, True, False), (False, False, True)]


def test_pictures_come_when_asked_for(web, classifier):
    rows = ask(web, XRAYS[1], photograph(), b"text", query="?gradcam=1").json()
    assert list(rows[0])[-2:] == ["image", "heat"]
    image, heat = (_pixels(rows[0][name]) for name in ("image", "heat"))
    assert image.shape == (512, 512) and heat.shape == (128, 128, 4)
    assert (image == pictures.prepared(XRAYS[1], classifier.members[0].options)).all()
    drawn = classifier.heat(classifier.look(XRAYS[1]))
    assert np.abs(heat[..., 3] / 255 - drawn).max() < 0.01 and heat[..., 3].max() == 255
    assert _pixels(rows[1]["image"]).shape == (512, 512) and rows[1]["heat"] == ""
    assert rows[2]["image"] == rows[2]["heat"] == ""
    assert "heat" not in ask(web, XRAYS[1], query="?gradcam=0").json()[0]


def test_the_heat_is_that_of_the_class_that_is_called(classifier):
    strict = copy.copy(classifier)
    strict.threshold = 1.0
    desk = desks.Desk(strict)
    row = desk.answer([("x", XRAYS[1])], gradcam=True)[0]
    desk.close()
    look = classifier.look(XRAYS[1])
    wanted, other = (classifier.heat(look, name) for name in ("Normal", "COVID-19"))
    assert row["decision"] == "Normal" and np.abs(wanted - other).max() > 0.1
    drawn = _pixels(row["heat"])[..., 3] / 255 if row["heat"] else 0
    assert np.abs(drawn - wanted).max() < 0.01


def test_the_large_picture_shows_the_same_place_as_the_heat(classifier):
    pixels = cv2.imdecode(np.frombuffer(XRAYS[1], np.uint8), cv2.IMREAD_GRAYSCALE)
    barred = encoded(np.pad(pixels[:, 20:120], ((0, 0), (30, 10))), "PNG")  # higher than wide, with black bars
    large = pictures.prepared(barred, classifier.members[0].options)
    small = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - classifier.look(barred).views[0][..., 0]).mean() < 4


def test_a_heat_map_without_heat_is_none(classifier):
    cold = copy.copy(classifier)
    cold.heat = lambda *_: np.zeros((128, 128), np.float32)
    desk = desks.Desk(cold)
    row = desk.answer([("x", XRAYS[1])], gradcam=True)[0]
    desk.close()
    assert row["decision"] == "COVID-19" and row["image"] and row["heat"] == ""


def _pixels(url):
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "broken link"], ids=lambda row: row.name)
def test_a_bad_file_spoils_only_itself(web, expected, tmp_path, row):
    data = _disturbed(row, tmp_path)
    answer = ask(web, XRAYS[0], ("\u0141 x.png", data), XRAYS[1])
    first, bad, last = answer.json()
    assert answer.status_code == 200 and same(first, expected[0]) and same(last, expected[1])
    assert bad["sha256"] == sha256(data)
    alone = ask(web, data)
    assert same(alone.json()[0], bad)
    if row.outcome == "skipped" and row.name not in BY_NAME:
        assert alone.status_code == 422 and re.search(row.words, bad["error"]) and "\n" not in bad["error"]
        assert bad["decision"] == bad["refused"] == ""
    else:
        plain = SOUND if row.name in BY_NAME else encoded(picture(5), "PNG")
        assert alone.status_code == 200 and same({**bad, "sha256": ""}, {**ask(web, plain).json()[0], "sha256": ""})


def _disturbed(row, folder):
    case = SimpleNamespace(root=folder / "set", tmp_path=folder, pictures={LAST: picture(5)})
    (case.root / LAST).parent.mkdir(parents=True)
    (case.root / LAST).write_bytes(encoded(picture(5), "PNG"))
    row.disturb(case)
    found = [path for path in (case.root / FOLDER).iterdir() if path != case.root / LAST]
    return (found or [case.root / LAST])[0].read_bytes()


@pytest.mark.parametrize("name, shown", [
    (b"../../../etc/passwd", "../../../etc/passwd"),
    (b"<script>alert(1)</script>.png", "<script>alert(1)</script>.png"),
    (rb"a \"quoted\" name", 'a "quoted" name'),
    ("Röntgen 胸部 🫁.png".encode(), "Röntgen 胸部 🫁.png"),
    (b"a\tb\x00c\x1b[31m", "a\tb\x00c\x1b[31m"),
    (b"line%0Abreak", "line%0Abreak"),
    (b"x" * 5000, "x" * 5000),
])  # fmt: skip
def test_names_are_only_repeated(web, expected, name, shown):
    body = form((name, XRAYS[0]))
    with Client(web, head(len(body)) + body) as client:
        status, top, rows = client.answer()
    assert status == 200 and rows[0]["path"] == shown and same(rows[0], expected[0])
    assert "Content-Type: application/json" in top


def test_names_must_be_utf8(web):
    body = form((b"R\xf6ntgen.png", XRAYS[0]))
    with Client(web, head(len(body)) + body) as client:
        status, _, said = client.answer()
    assert status == 400 and "UTF-8" in said["error"]


def test_a_line_break_in_a_name_breaks_nothing(web):
    body = form((b"a\r\nX-Injected: yes", XRAYS[0]))
    with Client(web, head(len(body)) + body) as client:
        status, top, _ = client.answer()
    assert status in (200, 400) and "X-Injected" not in top


# What is refused


@pytest.mark.parametrize("options", [
    {}, {"files": {"picture": ("x.png", SOUND)}}, {"data": {"file": "text"}, "files": {"other": ("", b"")}},
    {"data": SOUND}, {"data": {"file": "text"}}, {"json": {"file": "x"}}, {"files": {"file": ("", b"")}},
    {"data": form((b"x", SOUND), end=False), "headers": {"Content-Type": "multipart/form-data; boundary=frontier"}},
    {"data": form((b"x", SOUND)), "headers": {"Content-Type": "multipart/form-data"}},
    {"data": form((b"x", SOUND)), "headers": {"Content-Type": "multipart/form-data; boundary=other"}},
])  # fmt: skip
def test_a_request_without_a_file_is_told_so(web, options):
    answer = requests.post(f"{web.address}/api/predict", timeout=20, **options)
    assert answer.status_code == 400 and "No file has arrived" in answer.json()["error"]


def test_too_many_files_are_told_how_many_may_come(web):
    assert ask(web, *[b"text"] * facts.MAX_FILES).status_code == 422
    answer = ask(web, *[b"text"] * (facts.MAX_FILES + 1))
    assert answer.status_code == 413 and "21 files" in answer.json()["error"] and "at most 20" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/api/predict", "/"])
def test_too_many_bytes_are_heard_out_and_told_the_limit(web, path):
    answer = requests.post(web.address + path, files={"file": ("x", bytes(facts.MAX_BYTES))}, timeout=60)
    assert answer.status_code == 413 and "More than 32 MB" in answer.json()["error"]
    _secure(answer, "no-store")


def test_a_client_that_listens_only_when_all_is_sent_hears_the_limit(web):
    with Client(web, head(facts.MAX_BYTES + 1_000_000)) as client:
        for _ in range(33):
            client.send(bytes(1_000_000))  # fails where the server has hung up
        assert client.answer()[0] == 413 and client.ended()
    assert web.server.adj.room.left == servers.ROOM


def test_whoever_asks_before_sending_too_much_need_not_send_it(web):
    with Client(web, head(facts.MAX_BYTES + 1, "Expect: 100-continue")) as client:
        assert client.answer()[0] == 413 and client.ended()


def test_too_many_bytes_in_chunks_are_not_kept(web):
    with Client(web, head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")) as client:
        with pytest.raises(OSError):  # the server hangs up
            for _ in range(80):
                client.send(b"80000\r\n" + bytes(1 << 19) + b"\r\n")
            while client.socket.recv(1 << 16):
                pass
            raise ConnectionResetError("it hung up after its answer")
    assert requests.get(f"{web.address}/healthz", timeout=20).status_code == 200


def test_long_fields_are_refused(web):
    sent = {"data": {"file": "x" * 200_000}, "files": {"file": ("x", SOUND)}}
    answer = requests.post(f"{web.address}/api/predict", timeout=20, **sent)
    assert answer.status_code == 413 and answer.json()["error"]


@pytest.mark.parametrize("method, path, status, kind", [
    ("GET", "/api/predict", 405, "json"), ("PUT", "/api/predict", 405, "json"), ("DELETE", "/api/models", 405, "json"),
    ("POST", "/healthz", 405, "json"), ("GET", "/api/nothing", 404, "json"), ("GET", "/api", 404, "json"),
    ("GET", "/apiary", 404, "html"), ("GET", "/nothing", 404, "html"), ("GET", "/a/b/<script>", 404, "html"),
    ("POST", "/", 405, "html"),
    ("GET", "/samples/99.png", 404, "html"), ("GET", "/static/../app.py", 404, "html"), ("BREW", "/", 405, "html"),
    ("GET", "/static/%2e%2e/app.py", 404, "html"),
])  # fmt: skip
def test_wrong_addresses_and_methods(web, method, path, status, kind):
    answer = requests.request(method, web.address + path, timeout=20)
    assert answer.status_code == status and kind in answer.headers["Content-Type"]
    assert ("Allow" in answer.headers) == (status == 405)
    if kind == "json":
        assert list(answer.json()) == ["error"]
    else:
        assert CLAIM in answer.text and "<script" not in answer.text
    _secure(answer, "no-store")


@pytest.mark.parametrize("data, status", [
    (b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400), (head("abc"), 400), (head("-5"), 400),
    (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    (head(0, "Transfer-Encoding: gzip"), 501),
])  # fmt: skip
def test_what_is_no_request_is_told_so_in_json(web, data, status):
    with Client(web, data) as client:
        found, top, said = client.answer()
        assert found == status and list(said) == ["error"] and "waitress" not in top + said["error"]
        assert all(f"{name}: {value}" in top for name, value in STRICT.items()) and "frame-ancestors 'none'" in top
        assert client.ended()


# Pages and headers


def _secure(answer, cache):
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert {name: answer.headers[name] for name in STRICT} == STRICT
    assert answer.headers["Cache-Control"] == cache and "Set-Cookie" not in answer.headers


PAGES = ("/", "/model", "/interface", "/no/such/page")


@pytest.mark.parametrize("path", PAGES)
def test_pages_say_what_they_are_for_and_load_nothing_from_outside(web, path):
    answer = requests.get(web.address + path, headers={"Host": "evil.example"}, timeout=20)
    text = answer.text
    assert CLAIM in text and "simulated" in text and "evil.example" not in text
    assert ("This page needs JavaScript" in text) == (path == "/")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|(src|href)=.?(https?:)?//", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
    for link in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert requests.get(requests.compat.urljoin(web.address + path, link), timeout=20).status_code == 200, link
    _secure(answer, "no-store")


@pytest.mark.parametrize("path, cache", [
    *((page, "no-store") for page in PAGES[:3]), ("/healthz", "no-store"), ("/api/models", "no-store"),
    ("/static/app.js", "no-cache"), ("/static/style.css", "no-cache"), ("/samples/0.png", "no-cache"),
])  # fmt: skip
def test_headers_are_strict_and_head_is_answered(web, path, cache):
    whole, top = (requests.request(method, web.address + path, timeout=20) for method in ("GET", "HEAD"))
    assert whole.status_code == top.status_code == 200 and top.content == b"" and whole.content
    assert whole.headers["Content-Length"] == top.headers["Content-Length"] == str(len(whole.content))
    _secure(whole, cache)
    _secure(top, cache)


def test_nothing_is_debugged(web, classifier):
    assert not create_app(classifier, desk=web.desk).debug
    assert requests.get(f"{web.address}/console", timeout=20).status_code == 404


def test_samples_are_simulated_and_answered(web, classifier):
    samples = pictures.samples(tuple(classifier.classes))
    rows = ask(web, *[requests.get(f"{web.address}/samples/{n}.png", timeout=20).content for n in range(4)]).json()
    assert [sha256(sample.png) for sample in samples] == [row["sha256"] for row in rows]
    assert [row["decision"] for row in rows] == [sample.label for sample in samples] == ["Normal", "COVID-19"] * 2
    assert [sample.label for sample in pictures.samples(("Abnormal", "Other"))] == [
        "Normal", "COVID-19", "Viral Pneumonia", "Lung Opacity", "Normal", "COVID-19"]  # fmt: skip


def test_models_are_described(web, classifier):
    found = requests.get(f"{web.address}/api/models", timeout=20).json()
    card = classifier.members[0].card
    assert found["classes"] == card["classes"] and found["threshold"] == card["threshold"]
    assert found["simulated"] is True and found["columns"] == classifier.columns and found["purpose"] == PURPOSE
    assert found["limits"] == {"files": 20, "bytes": 32_000_000, "pixels": 100_000_000}
    assert found["models"][0]["metrics"] == card["metrics"] and found["models"][0]["weights"] == card["weights"]


def altered(classifier, *, threshold=None, **card):
    """A classifier like this one, with another card."""
    made = copy.copy(classifier)
    made.members = [member._replace(card={**member.card, **card}) for member in classifier.members]
    made.threshold = classifier.threshold if threshold is None else threshold
    return made


def page_of(classifier, desk, path="/"):
    text = create_app(classifier, desk=desk).test_client().get(path).text
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_page_shows_sensitivity_and_specificity_with_intervals(web, classifier):
    scores = {"binary.one.sensitivity": 0.91, "binary.one.sensitivity.lo": 0.87, "binary.one.sensitivity.hi": 0.94,
              "binary.one.sensitivity.n": 200, "binary.one.specificity": 0.5, "multiclass.two.sensitivity": 0.123,
              "binary.one.accuracy": 0.777, "binary.odd.specificity": float("nan")}  # fmt: skip
    text = page_of(altered(classifier, metrics=scores), web.desk)
    assert "one 0.910 0.870–0.940, n = 200 0.500" in text and f"called from {classifier.threshold:.3f} on" in text
    assert "0.123" not in text and "0.777" not in text and "nan" not in text
    assert "0.777" in page_of(altered(classifier, metrics=scores), web.desk, "/model")


def test_page_says_where_no_scores_are_recorded(web, classifier):
    assert "bundle records none" in page_of(altered(classifier, metrics={}), web.desk)
    assert "No scores are recorded" in page_of(altered(classifier, metrics={}), web.desk, "/model")
    assert "none are recorded at the threshold 0.250, which was set by hand" in page_of(
        altered(classifier, threshold=0.25), web.desk)  # fmt: skip
    assert "binary.x" not in json.dumps(facts.about(altered(classifier, metrics={}))["models"][0]["metrics"])


def test_interface_knows_no_nan(web, classifier):
    odd = altered(classifier, metrics={"binary.x.auroc": float("nan"), "binary.x.f1": float("inf")})
    text = create_app(odd, desk=web.desk).test_client().get("/api/models").text
    found = json.loads(text, parse_constant=pytest.fail)["models"][0]["metrics"]
    assert found == {"binary.x.auroc": None, "binary.x.f1": None}


def test_real_bundles_and_more_classes_are_not_called_simulated(web, classifier):
    real = altered(classifier, simulated=False, task="multiclass", classes=["A", "B", "<b>C</b>"])
    real.members[0].card["threshold"] = None
    real.simulated, real.classes, real.threshold = False, ["A", "B", "<b>C</b>"], None
    client = create_app(real, desk=web.desk).test_client()
    text = client.get("/").text
    assert CLAIM in text and "knows simulated X-rays only" not in text and "<b>C" not in text
    assert "most probable class is called" in text and client.get("/model").status_code == 200


def test_several_models_are_averaged(tmp_path):
    (tmp_path / "twin").symlink_to(config.SHIPPED)
    both = Classifier([config.SHIPPED, tmp_path / "twin"])
    with running(both) as web:
        row = ask(web, XRAYS[1], query="?gradcam=1").json()[0]
        assert row.pop("image") and row.pop("heat") and same(row, both.rows([("", both.look(XRAYS[1]))])[0])
        assert len(requests.get(f"{web.address}/api/models", timeout=20).json()["models"]) == 2
        assert "recorded for the average of several models" in requests.get(web.address, timeout=20).text


# Nothing is kept


def test_large_bodies_stay_in_memory(web, expected, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at all")  # to write there, even as root, is impossible
    with pytest.raises(FileNotFoundError):
        tempfile.TemporaryFile()
    large = XRAYS[0] + b"\xff" * (facts.MAX_BYTES - 200_000)
    answers = [ask(web, large), ask(web, *[XRAYS[0] + b"\xff" * 1_500_000] * 20, query="?gradcam=1")]
    body = form((b"x", XRAYS[0] + b"\xff" * 3_000_000))
    kind = {"Content-Type": "multipart/form-data; boundary=frontier"}
    pieces = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    answers.append(requests.post(f"{web.address}/api/predict", data=pieces, headers=kind, timeout=60))
    assert [answer.status_code for answer in answers] == [200] * 3
    for row in (row for answer in answers for row in answer.json()):
        assert row["decision"] == expected[0]["decision"] and abs(row["p_Normal"] - expected[0]["p_Normal"]) < 1e-5
    until(lambda: web.server.adj.room.left == servers.ROOM)


def test_an_error_of_ours_says_nothing_about_the_file(classifier, caplog):
    broken = copy.copy(classifier)
    broken.rows = lambda named: (_ for _ in ()).throw(RuntimeError(f"secret of {named[0][0]}"))
    with running(broken) as web:
        answer = ask(web, ("patient Miller.png", XRAYS[0]))
        assert answer.status_code == 500 and list(answer.json()) == ["error"]
        assert "secret" not in answer.text + caplog.text and "Miller" not in answer.text + caplog.text
        assert "RuntimeError in test_web.py" in caplog.text
        broken.rows = classifier.rows
        assert ask(web, XRAYS[0]).status_code == 200  # the thread that asks the models lives on


def test_a_surprise_in_a_decoder_spoils_only_its_file(classifier, expected, caplog):
    odd = copy.copy(classifier)

    def look(data):
        if data == b"CourseError":
            raise CourseError("install pydicom")
        if data == b"surprise":
            raise ZeroDivisionError("secret")
        return classifier.look(data)

    odd.look = look
    desk = desks.Desk(odd)
    rows = desk.answer([("a", XRAYS[0]), ("b", b"surprise"), ("c", b"CourseError")], gradcam=True)
    desk.close()
    assert rows[0]["decision"] == expected[0]["decision"] and rows[1]["error"] == "cannot be read (ZeroDivisionError)"
    assert rows[2]["error"] == "cannot be read (install pydicom)" and "secret" not in caplog.text


# Many at once


def test_fifty_clients_at_once_get_each_their_own_answer(web, classifier):
    rng = np.random.default_rng(3)
    base = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for data in XRAYS]
    lighter = [cv2.add(base[n % 6], int(rng.integers(0, 60))) for n in range(100)]
    files = [cv2.imencode(".png", pixels)[1].tobytes() + bytes([n]) for n, pixels in enumerate(lighter)]
    known = {row["sha256"]: row for row in classifier.rows([("", classifier.look(data)) for data in files])}
    assert len(known) == 100
    start = threading.Barrier(50)

    def client(number):
        mine = [(f"{number}-{place}", files[(number * 3 + place) % 100]) for place in range(1 + number % 3)]
        with requests.Session() as session:
            start.wait(20)
            found = []
            for _ in range(3):
                named = [("file", one) for one in mine]
                found.append((mine, session.post(f"{web.address}/api/predict", files=named, timeout=60)))
        return found

    with ThreadPoolExecutor(50) as pool:
        answers = [one for some in pool.map(client, range(50)) for one in some]
    assert len(answers) == 150 and {answer.status_code for _, answer in answers} == {200}
    for mine, answer in answers:
        assert [row["path"] for row in answer.json()] == [name for name, _ in mine]
        for (_, data), row in zip(mine, answer.json(), strict=True):
            assert row["sha256"] == sha256(data) and same(row, known[row["sha256"]])


class Held:
    """A classifier whose models wait until they are let go."""

    def __init__(self, classifier):
        self.made, self.go, self.calls = copy.copy(classifier), threading.Event(), []
        self.made.rows = self._rows
        self.rows = classifier.rows

    def _rows(self, named):
        self.calls.append(len(named))
        assert self.go.wait(30)
        return self.rows(named)


def test_images_of_several_requests_go_in_one_call(classifier, expected):
    held = Held(classifier)
    desk = desks.Desk(held.made)
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(desk.answer, [("first", XRAYS[0])])]
        until(lambda: held.calls)
        asked += [pool.submit(desk.answer, [(f"{n}-{k}", XRAYS[n % 6]) for k in range(2)]) for n in range(35)]
        until(lambda: desk._asked.qsize() == 70)
        held.go.set()
        rows = [one.result() for one in asked]
    desk.close()
    assert held.calls == [1, desks.BATCH, 6]
    for number, some in enumerate(rows[1:]):
        assert [row["path"] for row in some] == [f"{number}-0", f"{number}-1"]
        assert all(same(row, expected[number % 6]) for row in some)


def test_whoever_finds_the_queue_full_is_told_when_to_come_again(classifier, expected):
    held = Held(classifier)
    with running(held.made, waiting=4) as web, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, web, *XRAYS[:3])
        until(lambda: web.desk._here == 3)
        full = ask(web, *XRAYS[:2])
        assert full.status_code == 503 and int(full.headers["Retry-After"]) > 0 and "try again" in full.json()["error"]
        _secure(full, "no-store")
        second = pool.submit(ask, web, XRAYS[5])
        until(lambda: web.desk._here == 4)
        assert requests.get(f"{web.address}/healthz", timeout=20).json() == {"status": "ok"}  # others are not held up
        held.go.set()
        assert [same(*pair) for pair in zip(first.result().json(), expected[:3], strict=True)]
        assert same(second.result().json()[0], expected[5])
        assert ask(web, *XRAYS[:4]).status_code == 200 and web.desk._here == 0


def test_health_fails_when_nobody_answers_any_more(classifier):
    with running(classifier) as web:
        web.desk.close()
        until(lambda: not web.desk.alive)
        assert requests.get(f"{web.address}/healthz", timeout=20).status_code == 503


# Slow, half-way, wrong


def test_slow_clients_hold_nobody_up_and_are_answered(web, expected):
    body = form((b"slow.png", XRAYS[2]))
    slow = [Client(web, head(len(body))) for _ in range(30)]
    step = len(body) // 20 + 1
    for place in range(0, len(body), step):
        for client in slow:
            client.send(body[place : place + step])
        if place < len(body) - step:
            assert same(ask(web, XRAYS[0]).json()[0], expected[0])
    for client in slow:
        with client:
            status, _, rows = client.answer()
            assert status == 200 and same(rows[0], expected[2])


def test_uploads_that_break_off_leave_nothing(web, expected):
    body = form((b"half.png", XRAYS[2]))
    halves = [Client(web, head(len(body)) + body[: len(body) // 2]) for _ in range(60)]
    until(lambda: web.server.adj.room.left == servers.ROOM - 60 * len(body))
    assert same(ask(web, XRAYS[0]).json()[0], expected[0])
    for client in halves:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # some hang up rudely
        client.socket.close()
    until(lambda: web.server.adj.room.left == servers.ROOM)
    assert same(ask(web, XRAYS[0]).json()[0], expected[0])


def test_clients_that_leave_before_the_answer_disturb_nobody(web, expected):
    body = form((b"x.png", XRAYS[2]))
    for _ in range(20):
        Client(web, head(len(body)) + body).socket.close()
    assert same(ask(web, XRAYS[0]).json()[0], expected[0])
    until(lambda: web.desk._here == 0 and web.server.adj.room.left == servers.ROOM)


def test_a_length_too_short_is_a_damaged_form(web, expected):
    body = form((b"x.png", XRAYS[2]))
    with Client(web, head(len(body) - 300) + body) as client:
        status, _, said = client.answer()
        assert status == 400 and "length" in said["error"]
    assert same(ask(web, XRAYS[0]).json()[0], expected[0])


def test_a_length_too_long_waits_and_ends_with_the_client(web, expected):
    body = form((b"x.png", XRAYS[2]))
    with Client(web, head(len(body) + 300) + body) as client:
        assert same(ask(web, XRAYS[0]).json()[0], expected[0])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.ended()


def test_two_requests_on_one_connection_are_answered_in_order(web, expected):
    bodies = [form((name, data)) for name, data in ((b"one", XRAYS[0]), (b"two", XRAYS[1]))]
    with Client(web, b"".join(head(len(body)) + body for body in bodies)) as client:
        rows = [client.answer()[2][0] for _ in bodies]
    assert [row["path"] for row in rows] == ["one", "two"] and same(rows[0], expected[0]) and same(rows[1], expected[1])


def test_a_request_may_not_take_for_ever(web, monkeypatch):
    monkeypatch.setattr(servers, "PATIENCE", -1)
    with Client(web, head(1000) + b"x") as client:
        status, _, said = client.answer()
        assert status == 408 and "did not arrive" in said["error"] and client.ended()


def test_silent_connections_are_closed(web):
    with Client(web, b"POST /api/pre") as silent:
        until(lambda: any(channel.request for channel in list(web.server.active_channels.values())))
        later = time.time() + servers.SILENCE + 1
        web.server.trigger.pull_trigger(lambda: web.server.maintenance(later))
        assert silent.ended()


def test_memory_for_bodies_is_limited(web, monkeypatch, expected):
    monkeypatch.setattr(web.server.adj, "room", servers._Room(100_000))
    body = form((b"x.png", bytes(70_000)))
    with Client(web, head(len(body)) + body[:-10]) as first:
        until(lambda: web.server.adj.room.left < 50_000)
        with Client(web, head(len(body)) + body) as second:
            status, top, said = second.answer()
            assert status == 503 and "Retry-After: 2" in top and "Too much" in said["error"]
        first.send(body[-10:])
        assert first.answer()[0] == 422
    until(lambda: web.server.adj.room.left == 100_000)
    assert same(ask(web, XRAYS[0]).json()[0], expected[0])


# The command

# With an eye on files: once the command has said where it is, none may be opened for writing, not even a temporary one.
WATCHED = """import builtins, os, runpy, sys, tempfile
ready = []
def watch(event, args):
    if event == "open" and ready:
        if set("wax+") & set(args[1] or "") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            os.write(2, f"written: {args[0]}\\n".encode())
def say(text, **_):
    os.write(1, f"{text}\\n".encode())
    tempfile.tempdir = "/nowhere/at all"
    ready.append(text)
sys.addaudithook(watch)
builtins.print = say
sys.argv = ["utils.web"]
runpy.run_module("utils.web", run_name="__main__", alter_sys=True)"""


def run(*arguments, **environ):
    environ = {**os.environ, **environ}
    return subprocess.run(arguments, cwd=config.ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_help_needs_no_tensorflow():
    done = run(sys.executable, "-X", "importtime", "-m", "utils.web", "--help")
    assert done.returncode == 0 and "--model" in done.stdout and "not for diagnosis" in " ".join(done.stdout.split())
    assert "argparse" in done.stderr and not re.search(r"\b(tensorflow|flask|numpy|waitress)\b", done.stderr)


@pytest.mark.parametrize("arguments, environ, words", [
    (["--port", "http"], {}, "PORT: expected a whole number"),
    (["--port", "65536"], {}, "PORT: expected a whole number"),
    ([], {"PORT": "-1"}, "PORT: expected a whole number"),
    ([], {"HOST": "256.0.0.1"}, "HOST: this computer cannot listen at '256.0.0.1'"),
    (["--host", "192.0.2.1"], {"PORT": "0"}, "HOST: this computer cannot listen at '192.0.2.1'"),
    (["--prot", "1"], {}, "unrecognized arguments: --prot"),
])  # fmt: skip
def test_wrong_usage_is_one_clear_line(arguments, environ, words):
    done = run(sys.executable, "-m", "utils.web", *arguments, **{"HOST": "", "PORT": "", **environ})
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert "--prot" in words or done.stderr.count("\n") == 1


def test_make_passes_what_is_typed_and_nothing_else(tmp_path):
    # A Makefile by itself, with a Python that only tells: the real one builds .venv anew when the lock has changed.
    shutil.copy(config.ROOT / "Makefile", tmp_path)
    for name, text in (("utils/environment.py", ""), (".venv/bin/python", '#!/bin/sh\necho "$HOST|$PORT|$*"\n')):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def make(*arguments, **environ):
        return run("make", "-C", str(tmp_path), "--no-print-directory", *arguments, **environ)

    assert make("app", "HOST=a $b", PORT="1").stdout == "a $b||-m utils.web\n"
    assert make("app", "PORT=2", HOST="x").stdout == "|2|-m utils.web\n"
    assert "DATASET is not known to make app" in make("app", "DATASET=x").stderr
    assert "HOST is not known to make test" in make("test", "HOST=x").stderr
    assert "HOST=127.0.0.1 PORT=8000" in make("help").stdout


@pytest.mark.parametrize("arguments, words", [
    (["--model", "/no/such/bundle"], "no/such/bundle"), (["--threshold", "2"], "from 0 to 1"),
])  # fmt: skip
def test_no_usable_model_is_one_clear_line(arguments, words, monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(signal, "signal", lambda number, _: ends.append(number))
    assert command.main(["--port", "0", *arguments]) == 2
    assert words in capsys.readouterr().err and set(ends) == {signal.SIGTERM, signal.SIGINT}


def test_a_bundle_that_cannot_refuse_is_not_served(tmp_path):
    shutil.copytree(config.SHIPPED, tmp_path / "bundle", ignore=shutil.ignore_patterns("refusal.npz"))
    with pytest.raises(CourseError, match="refusal"):
        command._run(SimpleNamespace(host="127.0.0.1", port="0", model=[tmp_path / "bundle"], threshold=None))
    assert models.open_bundle(tmp_path / "bundle")


def test_the_command_serves_keeps_quiet_and_ends_at_once(expected, tmp_path):
    given = {"PORT": "0", "HOST": "", "PYTHONWARNINGS": "default"}
    process = subprocess.Popen([sys.executable, "-c", WATCHED], cwd=config.ROOT, env={**os.environ, **given},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        name, where = process.stdout.readline(), process.stdout.readline()
        assert PURPOSE in name and "simulated" in name
        address = re.search(r"Open (http://127\.0\.0\.1:\d+)/ in a browser; Ctrl-C", where)[1]
        web = SimpleNamespace(address=address, port=int(address.rpartition(":")[2]))
        rows = [row for row in ROWS if row.name not in ("broken link", "20,000 x 40")]
        files = [("secret Miller.png", _disturbed(row, tmp_path / str(n))) for n, row in enumerate(rows)]
        answers = [ask(web, *files[start : start + 20]) for start in range(0, len(files), 20)]
        assert {answer.status_code for answer in answers} == {200, 422}  # the first twenty are all unreadable
        row = ask(web, XRAYS[1] + b"\xff" * 9_000_000, query="?gradcam=1").json()[0]
        assert row["heat"] and abs(row["p_Normal"] - expected[1]["p_Normal"]) < 1e-5
        taken = run(sys.executable, "-m", "utils.web", "--port", str(web.port), HOST="")
        assert taken.returncode == 2 and f"Port {web.port} of 127.0.0.1 is in use" in taken.stderr
        assert taken.stderr.count("\n") == 1 and f"PORT={web.port + 1}" in taken.stderr
        with Client(web, head(1000) + b"half"):
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and time.monotonic() - began < 2
        assert out == err == ""
    finally:
        process.kill()
        process.wait()
