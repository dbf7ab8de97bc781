"""Predictions for files and folders on the command line: `python -m utils.predict --help`.

A row an image, in the order given. `error`: it cannot be read; `refused`: it was read, but is no frontal chest X-ray.

Exit codes: 0 done (refused images included), 1 the results could not be written, 2 wrong usage or no usable model, 3
done, but some files could not be read, 130 interrupted, 141 the program that reads the results has ended.
"""

import argparse
import csv
import glob
import json
import os
import signal
import stat
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

from utils.errors import CourseError, one_line
from utils.kinds import HEAD, kind

BATCH = 64  # images asked about at once
WAITING = 4 * BATCH  # files at most between reading and answering: memory stays flat
MOST_READERS = 8  # each may hold a large image; more wait for one model anyway
# In a folder, what is called so is an image, and what is one; of anything else there is no row.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".dicom")
ENDINGS = (".csv", ".jsonl")  # of --out


class Files:
    """The files that arguments name, one after the other: (path, why it cannot be read or "").

    Attributes
    ----------
    passed_over : int
        So many files of folders, up to now, neither were called like images nor were any.
    """

    def __init__(self, arguments, *, separator=b"\n"):
        self.arguments, self.separator, self.passed_over = arguments, separator, 0

    def __iter__(self):
        for argument in self.arguments:
            yield from self._listed() if argument == "-" else self._named(argument)

    def _listed(self):
        for line in _lines(sys.stdin.buffer, self.separator):
            path = os.fsdecode(line)
            yield from self._one(path)

    def _named(self, argument):
        """A path as it stands; else, a pattern: a name with brackets in it is a name first."""
        if os.path.lexists(argument) or not glob.has_magic(argument):
            yield from self._one(argument)
            return
        found = _matching(argument)
        for path in found:
            yield from self._one(path)
        if not found:
            yield argument, "no file is called like this pattern"

    def _one(self, path):
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            yield path, f"cannot be read ({_why(error)})"
            return
        if stat.S_ISDIR(mode):
            yield from self._inside(path)
        else:
            yield path, "" if stat.S_ISREG(mode) else "not a file that can be opened"

    def _inside(self, folder):
        found = False
        for found in self._walk(folder):
            yield found
        if not found:
            yield folder, "no image in this folder"

    def _walk(self, folder):
        known, waiting = set(), [folder]  # a list, not recursion: folders may lie deeper than Python calls
        while waiting:
            path = waiting.pop()
            if os.path.isdir(path):
                try:
                    waiting.extend(sorted(_entries(path, known), reverse=True))
                except OSError as error:
                    yield path, f"cannot be read ({_why(error)})"
            elif path.lower().endswith(SUFFIXES) or _is_image(path):
                yield from self._one(path)
            else:
                self.passed_over += 1


def _entries(folder, known):
    about = os.stat(folder)
    if (about.st_dev, about.st_ino) in known:  # a link to a folder seen before, perhaps to one above: endless otherwise
        return []
    known.add((about.st_dev, about.st_ino))
    return [os.path.join(folder, name) for name in filter(_is_seen, os.listdir(folder))]


def _is_seen(name):
    return name[0] != "." and name != "__MACOSX"  # hidden files, and a Mac's remarks on others in a zip archive


def _matching(pattern):
    """Return the paths that a pattern matches; with ** files only: their folders would bring them once more."""
    before, deep, after = pattern.partition("**")
    if not deep:
        return sorted(glob.glob(pattern))
    found = set()  # not glob's own **: it follows links to folders, and two that lead back keep it busy for ever
    for top in glob.glob(before) if before else [os.curdir]:
        for folder, below, _ in os.walk(top):
            below[:] = filter(_is_seen, below)
            names = glob.glob(after.lstrip(os.sep + "/") or "*", root_dir=folder)
            found.update(os.path.join(folder, name) for name in names)
    return sorted(path for path in found if not os.path.isdir(path))


def _lines(stream, separator):
    rest = b""
    while block := stream.read1(1 << 16):
        *lines, rest = (rest + block).split(separator)
        yield from filter(None, lines)
    if rest:
        yield rest


def _is_image(path):
    try:
        if not os.path.isfile(path):  # never a pipe: opening one waits for ever
            return False
        with open(path, "rb") as file:
            return kind(file.read(HEAD)) is not None
    except OSError:
        return False


def _why(error):
    return getattr(error, "strerror", None) or one_line(error) or "too large for the memory of this computer"


def _read(classifier, path, problem):
    """Return the `Look` of a file; whatever is wrong with it becomes its error."""
    from utils import classifier as classifiers
    from utils import images

    try:
        if problem:
            return classifiers.Look("", error=problem)
        if os.stat(path).st_size > images.MAX_BYTES:
            return classifiers.Look("", error=images.TOO_MANY_BYTES)
        return classifier.look(Path(path).read_bytes())
    except (OSError, MemoryError) as error:
        return classifiers.Look("", error=f"cannot be read ({_why(error)})")


def predictions(classifier, files):
    """Answer for files: they are read by threads while the models work, and no more than a few batches wait.

    Parameters
    ----------
    classifier : utils.classifier.Classifier
    files : iterable of (str, str)
        Path, and why it cannot be read or "".

    Yields
    ------
    row : dict
        See `Classifier.rows`.
    look : utils.classifier.Look
    """
    files, waiting = iter(files), deque()
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_READERS))
    try:
        while True:
            while len(waiting) < WAITING and (item := next(files, None)):
                waiting.append((item[0], pool.submit(_read, classifier, *item)))
            if not waiting:
                return
            batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
            named = [(path, look.result()) for path, look in batch]
            yield from zip(classifier.rows(named), (look for _, look in named))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nobody waits for files that are of no use any more


# Writing

ORANGE, RED = (0, 159, 230), (0, 94, 213)  # blue, green, red: the heat of `plots.overlay`, without its import


@contextmanager
def _opened(path):
    """Open a file for the rows, which is whole or not there at all; a device or a pipe is never replaced."""
    from utils.files import written

    special = os.path.exists(path) and not os.path.isfile(path)
    with nullcontext(path) if special else written(path) as part:
        with open(part, "w", encoding="utf-8", newline="") as stream:
            yield stream


def _writer(stream, columns, as_lines):
    """Return a function that writes one row."""
    if as_lines:
        return lambda row: stream.write(json.dumps({**row, "path": _shown(row["path"])}, ensure_ascii=False) + "\n")
    # With "\n" as its end of a line, csv leaves a carriage return in a name without the quotes that readers need.
    lines = SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n"))
    table = csv.DictWriter(lines, columns)
    table.writeheader()
    return lambda row: table.writerow({**row, "path": _shown(row["path"])})


def _shown(path):
    """Return a path as text: bytes of a name that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def overlay(classifier, look, called):
    """Draw the Grad-CAM of an image over it.

    Parameters
    ----------
    classifier : utils.classifier.Classifier
    look : utils.classifier.Look
    called : str
        The decision.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width, 3), blue, green, red: the prepared image and, beside it, with the heat; below, a line.
    """
    import cv2
    import numpy as np

    from utils.classifier import PURPOSE

    grey, heat = look.views[0][..., 0], classifier.heat(look, called)
    side = max(320, grey.shape[0])
    grey, heat = (cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR) for one in (grey, heat))
    plain = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    heat = heat[..., None]
    redder = np.maximum(2 * heat - 1, 0)
    colour = (1 - redder) * ORANGE + redder * RED
    share = 0.8 * heat**2  # the hottest place stands out; where nothing speaks for the class, the image stays as it is
    both = np.hstack([plain, np.uint8(plain * (1 - share) + colour * share)])
    strip = np.zeros((44, both.shape[1], 3), np.uint8)
    says = f"Called {called}{' by a model of simulated X-rays' if classifier.simulated else ''}."
    about = f"Right: where it looks (Grad-CAM, 0 to its largest value). {PURPOSE.capitalize()}."
    for text, place in ((says, 17), (about, 35)):
        cv2.putText(strip, text, (8, place), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([both, strip])


def _keep_overlay(folder, classifier, row, look):
    import cv2

    from utils.files import written

    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(_shown(row["path"])).stem)[:40]
    with written(Path(folder) / f"{stem}-{look.sha256[:12]}.png") as part:
        part.write_bytes(cv2.imencode(".png", overlay(classifier, look, row["decision"]))[1].tobytes())


# Command line


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m utils.predict", allow_abbrev=False,
        description="Predict for chest X-rays: a row an image. For teaching, not for diagnosis.",
        epilog="Exit: 0 done; 1 results could not be written; 2 usage, or no usable model; 3 some files could not be "
               "read. A name that begins with a dash comes after --.",
    )  # fmt: skip
    parser.add_argument("paths", nargs="*", metavar="PATH",
                        help="files, folders (with all below them), patterns such as 'x/*.png', or - for a list on "
                             "standard input, a path a line")  # fmt: skip
    parser.add_argument("--model", nargs="+", default=[], metavar="BUNDLE", action="extend",
                        help="folders of model bundles; the probabilities of several are averaged (default: the one "
                             "that is part of the course, trained on simulated X-rays)")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="CSV, or JSON Lines where it ends in .jsonl (default: CSV on "
                                                      "standard output)")  # fmt: skip
    parser.add_argument("--gradcam", metavar="FOLDER", help="also draw where the model looks, a PNG an image: "
                                                            "<its name>-<12 digits of its sha256>.png")  # fmt: skip
    parser.add_argument("--threshold", type=float, metavar="P",
                        help="of two classes, call the second from this probability on (default: the one of "
                             "the model's card)")  # fmt: skip
    parser.add_argument("-0", "--null", action="store_true", help="paths on standard input end in NUL, as find -print0 "
                                                                  "writes them")  # fmt: skip
    return parser


def _bar():
    """Return tqdm's options: a bar on a terminal alone."""
    if not sys.stderr.isatty():
        return {"disable": True}
    known = os.get_terminal_size(sys.stderr.fileno()).columns  # 0 from some that other programs open
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _run(args):
    from tqdm import tqdm

    from utils.classifier import PURPOSE, Classifier

    classifier = Classifier(args.model, threshold=args.threshold)
    files = Files(args.paths, separator=b"\0" if args.null else b"\n")
    counts = {"answered": 0, "refused": 0, "unreadable": 0}
    seen = list(files) if "-" not in args.paths else files  # counted beforehand, so that the bar knows its end
    with ExitStack() as stack:
        stream = sys.stdout
        if args.out:
            stream = stack.enter_context(_opened(args.out))
        write = _writer(stream, classifier.columns, bool(args.out) and args.out.lower().endswith(".jsonl"))
        found = predictions(classifier, seen)
        apart = tqdm.external_write_mode if stream.isatty() else nullcontext  # else the bar stands in the first rows
        total = len(seen) if isinstance(seen, list) else None
        for row, look in tqdm(found, total=total, unit=" images", **_bar()):
            with apart():
                write(row)
            counts["unreadable" if row["error"] else "refused" if row["refused"] else "answered"] += 1
            if args.gradcam and row["decision"]:
                _keep_overlay(args.gradcam, classifier, row, look)
        stream.flush()
    _summary(counts, files.passed_over, PURPOSE)
    return 3 if counts["unreadable"] else 0


def _summary(counts, passed_over, purpose):
    """Say on standard error what a reader of the rows should know; in a pipe, only what went wrong."""
    if sys.stderr.isatty():
        print(f"{', '.join(f'{number} {name}' for name, number in counts.items())}; {purpose}.", file=sys.stderr)
    elif counts["unreadable"]:
        print(f"Files that could not be read: {counts['unreadable']}; see the column error.", file=sys.stderr)
    if passed_over:
        print(f"Files in folders that are no images, and were passed over: {passed_over}.", file=sys.stderr)


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv=None):
    """Do what the command line says; return the exit code."""
    sys.stderr.reconfigure(errors="backslashreplace")
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.paths:
        parser.error("name files or folders, before --model or after --: all that follows --model is taken for bundles")
    if (
        args.out
        and os.path.splitext(args.out)[1].lower() not in ENDINGS
        and (os.path.isfile(args.out) or not os.path.exists(args.out))
    ):
        parser.error(f"--out takes a name in {' or '.join(ENDINGS)}, so that no X-ray is written over; got {args.out}")
    if args.gradcam and os.path.exists(args.gradcam) and not os.path.isdir(args.gradcam):
        parser.error(f"--gradcam takes a folder; {args.gradcam} is none")
    sys.stdout.reconfigure(encoding="utf-8", newline="", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _interrupt)  # end as after Ctrl-C: nothing half-written stays
    try:
        return _run(args)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end
        return 141
    except OSError as error:  # a full disk, a folder that cannot be written
        place = error.filename or args.out or "output"
        print(f"The results cannot be written: {place}: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _apart_from_libraries():
    """Keep standard error for what is said here: libtiff, for one, writes its own remarks on damaged files there."""
    kept = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = kept


if __name__ == "__main__":
    _apart_from_libraries()
    sys.exit(main())
