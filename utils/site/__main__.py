"""Build the site: `python -m utils.site --help`.

Exit codes: 0 done, 1 Sphinx has found something wrong with a page or a file cannot be written (the site is left as it
was), 2 wrong usage.
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from utils.config import ROOT
from utils.errors import CourseError
from utils.files import move_folder

PLACE = ROOT / "build" / "site"
MARK = "searchindex.js"  # every site has one, and nothing else does


def build(folder):
    """Build the site, and move it into place when it is whole.

    Parameters
    ----------
    folder : path-like
        Where it belongs. A site that lies there is replaced.

    Returns
    -------
    list of str
        What is wrong with the pages, each with its file; the folder is then left as it was. Empty: done.

    Raises
    ------
    CourseError
        Something else than a site lies there.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / MARK).is_file():
        raise CourseError(f"{folder} is there and holds no site: name another folder, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place: only a move within one file system is a matter of an instant.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".part-{folder.name}-") as part:
        problems = _run_sphinx(Path(part))
        if not problems:
            shutil.copy(Path(part, "html", "README.html"), Path(part, "html", "index.html"))
            move_folder(Path(part, "html"), folder)
    return problems


def _run_sphinx(part):
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError

    warnings = io.StringIO()
    folders = {"srcdir": ROOT, "confdir": Path(__file__).parent, "outdir": part / "html", "doctreedir": part / "trees"}
    try:
        app = Sphinx(**folders, buildername="html", confoverrides={"exclude_patterns": _folders_without_pages()},
                     status=None, warning=warnings)  # fmt: skip
        app.build()
    except SphinxError as error:
        warnings.write(str(error))
    return re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue()).splitlines()  # without colours


def _folders_without_pages():
    # Sphinx walks through all folders that are not named here, .venv and a user's X-rays among them.
    with_pages = [ROOT, ROOT / "notebooks", ROOT / "data", ROOT / "figures"]
    below = (path for folder in with_pages if folder.is_dir() for path in folder.iterdir())
    return [path.relative_to(ROOT).as_posix() for path in below if path.is_dir() and path not in with_pages]


def main(argv=None):
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.site", description="Build the course as a static site with search, for a browser.",
        epilog="Exit: 0 done; 1 something is wrong with a page; 2 usage.", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", default=PLACE, help="where (default: build/site)")
    args = parser.parse_args(argv)
    try:
        problems = build(args.out)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(
            f"{error.filename or 'A file'} cannot be used: {error.strerror}. Mend that, and run again.", file=sys.stderr
        )
        return 1
    if problems:
        print(*problems, "The site is not built. Mend the pages named above, and run again.", sep="\n", file=sys.stderr)
        return 1
    page = Path(args.out).absolute() / "index.html"
    page = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    print(f"The site is built: open {page} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
