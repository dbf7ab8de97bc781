"""Start the web app: `python -m utils.web --help`.

Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 wrong usage, no usable model, or an address that cannot be had.
"""

import argparse
import errno
import os
import signal
import socket
import sys

from utils.errors import CourseError

HOST, PORT = "127.0.0.1", "8000"
EVERYWHERE = ("0.0.0.0", "::")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m utils.web", allow_abbrev=False,
        description="Show what a model says of chest X-rays, in the browser. For teaching, not for diagnosis.",
        epilog="Exit: 0 ended by Ctrl-C or SIGTERM; 2 usage, no usable model, or an address that cannot be had.",
    )  # fmt: skip
    parser.add_argument("--model", nargs="+", default=[], metavar="BUNDLE", action="extend",
                        help="folders of model bundles; the probabilities of several are averaged (default: the one "
                             "that is part of the course, trained on simulated X-rays)")  # fmt: skip
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of two classes, call the second from this probability on (default: the model's own)",
    )
    parser.add_argument("--host", metavar="H", default=os.environ.get("HOST") or HOST,
                        help=f"address to listen at (default: $HOST, or {HOST}: this computer alone)")  # fmt: skip
    parser.add_argument("--port", metavar="N", default=os.environ.get("PORT") or PORT,
                        help=f"(default: $PORT, or {PORT}; 0: any that is free)")  # fmt: skip
    return parser


def bind(host, port):
    """Take an address, without listening there yet.

    Parameters
    ----------
    host, port : str

    Returns
    -------
    socket.socket

    Raises
    ------
    CourseError
        No address of this computer, in use, or forbidden.
    """
    if not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise CourseError(f"PORT: expected a whole number from 0 to 65535, got {port!r}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":  # or a restart would wait for the connections of the run before
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        raise CourseError(_refused(host, int(port), error)) from None
    return listening


def _refused(host, port, error):
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 8000
        return (f"Port {port} of {host} is in use, perhaps by this app already: end that, or take another port "
                f"(make app PORT={other}, or python -m utils.web --port {other}).")  # fmt: skip
    if number == errno.EACCES:
        return f"Port {port} of {host} is not for ordinary users: take one from 1024 on, such as {PORT}."
    reason = getattr(error, "strerror", None) or error
    return (f"HOST: this computer cannot listen at {host!r} ({reason}). Take {HOST} for this computer alone, 0.0.0.0 "
            "for all its networks.")  # fmt: skip


def _address(server):
    host, port = server.effective_host, server.effective_port
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def _run(args):
    listening = bind(args.host, args.port)
    from utils.classifier import PURPOSE, Classifier
    from utils.web.app import create_app
    from utils.web.server import create_server

    classifier = Classifier(args.model, threshold=args.threshold)
    app = create_app(classifier)
    try:
        server = create_server(app, listening)
    except OSError as error:  # another took the port since
        raise CourseError(_refused(args.host, int(args.port), error)) from None
    print(f"{classifier.name}\nOpen {_address(server)} in a browser; Ctrl-C ends it.", flush=True)
    if server.effective_host in EVERYWHERE:
        print(f"Whoever reaches this computer can use it: it asks for no password. It is {PURPOSE}.", flush=True)
    server.run()
    return 0


def main(argv=None):
    """Do what the command line says; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of folders may hold what a terminal cannot show
    args = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # at once: there is nothing to finish, and nothing was written
    try:
        return _run(args)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
