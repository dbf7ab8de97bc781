"""Writing files so that a killed run leaves nothing that looks whole."""

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path):
    """Give a temporary path beside `path`; move it into place when the block ends well.

    Parameters
    ----------
    path : path-like
        The final file. Its folder is made when missing; an older file is replaced in one step.

    Yields
    ------
    pathlib.Path
        Where to write. It has the same ending as `path` and lies in the same folder, because only a
        move within one file system is atomic. After an error nothing is left of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp gives 0600, and a class shares one cache
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def move_folder(part, folder):
    """Move a finished folder into place, where an older one may lie.

    A folder cannot be replaced in one step: the older one steps aside, and back should anything fail.

    Parameters
    ----------
    part, folder : pathlib.Path
        Where it was made, in the same file system, and where it belongs.
    """
    part.chmod(0o755)  # mkdtemp gives 0700
    older = folder.with_name(f".older-{folder.name}")
    shutil.rmtree(older, ignore_errors=True)
    if folder.exists():
        folder.rename(older)
    try:
        part.rename(folder)
    except OSError:
        if older.exists():
            older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def write_text(path, text):
    """Write `text` as UTF-8 with LF line ends, whole or not at all."""
    with written(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def sha256(data):
    """Return the SHA-256 of bytes, or of the file at a path, as 64 hex digits."""
    if not isinstance(data, bytes):
        data = Path(data).read_bytes()
    return hashlib.sha256(data).hexdigest()
