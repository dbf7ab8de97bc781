"""The Flask app: pages for people, JSON for programs. It keeps nothing, and writes nothing."""

import io
import logging
import traceback
from pathlib import Path

from flask import Flask, Request, Response, jsonify, render_template, request
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, RequestEntityTooLarge, ServiceUnavailable

from utils.classifier import PURPOSE
from utils.report import TASKS
from utils.web import facts, pictures
from utils.web.desk import Busy, Desk

RETRY_AFTER = 2  # seconds
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
SAYS = {
    404: "There is nothing at this address.",
    405: "This address does not take such a request.",
    413: f"More than {facts.MAX_BYTES // 1_000_000} MB in one request, or fields other than files that are too long.",
    500: "Something went wrong in the server; it goes on with the next request.",
}
NO_FILE = ("No file has arrived: send multipart/form-data with the field “file”, once for each file, whole, with the "
           "length that the header says, and names in UTF-8.")  # fmt: skip
logger = logging.getLogger(__name__)


class InMemory(Request):
    """A request whose files stay in memory: by itself Werkzeug writes those over 500 KB to a temporary folder."""

    def _get_file_stream(self, *_, **__):
        return io.BytesIO()


class Web(Flask):
    """Flask, with requests in memory."""

    request_class = InMemory


def create_app(classifier, *, desk=None):
    """Make the app for a classifier.

    Parameters
    ----------
    classifier : utils.classifier.Classifier
    desk : utils.web.desk.Desk, optional
        Who answers; by default one that asks `classifier`.

    Returns
    -------
    flask.Flask
    """
    app = Web(__name__)
    app.json.sort_keys = False  # the columns keep their order
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    app.config.update(MAX_CONTENT_LENGTH=facts.MAX_BYTES, MAX_FORM_MEMORY_SIZE=100_000)
    app.jinja_env.filters.update(beside=_beside, size=lambda number: f"{number // 1_000_000} MB")
    about = facts.about(classifier)

    @app.context_processor
    def _every_page():
        up = "../" * (request.path.count("/") - 1)  # addresses stay right behind a proxy that adds a folder
        return {"claim": PURPOSE.capitalize(), "about": about, "up": up, "here": request.endpoint}

    _add_pages(app, classifier, about)
    _add_interface(app, desk or Desk(classifier), about)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _own_error)
    app.after_request(_secured)
    return app


def _add_pages(app, classifier, about):
    samples = pictures.samples(tuple(classifier.classes))
    rows, note = facts.at_threshold(classifier)
    formats = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WebP", "DICOM")

    @app.get("/")
    def index():
        size = classifier.members[0].options.size
        return render_template("index.html", samples=samples, rows=rows, note=note, formats=formats, size=size,
                               task=TASKS.get(classifier.members[0].card["task"], ""))  # fmt: skip

    @app.get("/model")
    def model():
        return render_template("model.html", cards=facts.cards(classifier))

    @app.get("/interface")
    def interface():
        return render_template("interface.html", shares=[f"p_{name}" for name in classifier.classes])

    @app.get("/samples/<int:number>.png")
    def sample(number):
        if number >= len(samples):
            raise NotFound
        return Response(samples[number].png, mimetype="image/png")


def _add_interface(app, desk, about):
    @app.post("/api/predict")
    def predict():
        files = _files(request)
        try:
            rows = desk.answer(files, gradcam=request.args.get("gradcam") == "1")
        except Busy:
            said = f"{desk.waiting} images wait for an answer already: try again in {RETRY_AFTER} seconds."
            raise ServiceUnavailable(said) from None
        return jsonify(rows), 422 if all(row["error"] for row in rows) else 200

    @app.get("/api/models")
    def models():
        return jsonify(about)

    @app.get("/healthz")
    def healthz():
        return (jsonify(status="ok"), 200) if desk.alive else (jsonify(status="the models no longer answer"), 503)


def _files(asked):
    """Return the names and contents of the files in a request."""
    found = [file for file in asked.files.getlist("file") if file.filename or file.stream.getbuffer().nbytes]
    if not found:  # none, or a form that is damaged
        raise BadRequest(NO_FILE)
    if len(found) > facts.MAX_FILES:
        raise RequestEntityTooLarge(f"{len(found)} files in one request: send at most {facts.MAX_FILES}.")
    return [(file.filename or "", file.read()) for file in found]


def _secured(response):
    response.headers.update(SECURITY)
    fixed = request.endpoint in ("static", "sample") and response.status_code < 400
    response.headers["Cache-Control"] = "no-cache" if fixed else "no-store"
    if response.status_code == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def _http_error(error):
    own = error.description if error.description != type(error).description else None
    text = own or SAYS.get(error.code) or error.name + "."
    answer = error.get_response()  # with Allow, where a method is wrong
    if request.path.split("/")[1] in ("api", "healthz"):
        answer.data, answer.content_type = jsonify(error=text).data, "application/json"
    else:
        page = render_template("error.html", code=error.code, text=text, here="error")
        answer.data, answer.content_type = page, "text/html; charset=utf-8"
    return answer


def _own_error(error):
    # What an exception says may hold something of the file: where it came from is enough to mend it.
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s in %s, line %d", type(error).__name__, Path(place.filename).name, place.lineno)
    failed = HTTPException(SAYS[500])
    failed.code = 500
    return _http_error(failed)


def _beside(score):
    """Say what stands beside a score: its interval and the number of cases, as far as they are known."""
    known = score["lo"] is not None and score["hi"] is not None
    parts = [f"{score['lo']:.3f}–{score['hi']:.3f}"] if known else []
    return ", ".join(parts + ([f"n\u00a0=\u00a0{score['n']}"] if score["n"] is not None else []))
