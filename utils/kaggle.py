"""Kaggle's sets: downloaded whole at a pinned version, or unpacked from the .zip that a user has put there.

The table of files with their hashes (`files.csv`) is written last: its presence says that a set is whole.
"""

import csv
import io
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

from utils import download
from utils.errors import CourseError
from utils.files import sha256, written

RECORD = "files.csv"
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
_LOGIN = (
    "Make a free account at https://www.kaggle.com; there, under Settings, API, create a token and save it as "
    "~/.kaggle/kaggle.json (or set KAGGLE_USERNAME and KAGGLE_KEY); run again."
)


def fetch(handle, folder, *, most, room=0, is_set=None, limits=None):
    """Bring a Kaggle data set into `folder`/<name>, whole or not at all, and write the record of its files.

    Parameters
    ----------
    handle : str
        `owner/name/versions/N`.
    folder : path-like
        A .zip that the user has put here is unpacked instead of a download, and stays.
    most : int
        Bytes that the unpacked set may have.
    room : int
        Bytes that must be free before a download starts.
    is_set : callable, optional
        Path -> bool: is this folder the set? Some folder of what was unpacked must be.
    limits : Limits, optional
        LIMITS when not given. Only tries and pauses: kagglehub has its own time-outs, and none for its first request.

    Raises
    ------
    CourseError
        No log-in, no network, an archive that is damaged, dangerous or too large, no room.
    """
    folder, name = Path(folder), handle.split("/")[1]
    if (folder / name).is_dir() and (folder / RECORD).is_file():
        return
    with download.locked(folder):
        if not (folder / name).is_dir():
            found = archives(folder)
            if len(found) > 1:
                raise CourseError(
                    f"{folder}: expected one .zip; found {', '.join(path.name for path in found)}. "
                    "Leave the one of this set there, and run again."
                )
            if found:
                new = folder / ".new"
                shutil.rmtree(new, ignore_errors=True)  # of a killed run
                unpack(found[0], new, most=most)
                _settle(new, folder / name, is_set, found[0])
            else:
                download.require_room(folder, room)
                _download_kaggle(handle, folder, most, is_set, limits or download.LIMITS)
        with download.writing(folder):
            write_record(folder)  # last: its presence says that all is whole


def archives(folder):
    """Return the .zip files that a user has put into a folder, sorted."""
    return [path for path in sorted(Path(folder).glob("*")) if _is_archive(path)]


def _settle(new, target, is_set, archive):
    """Move what was unpacked into its place, if it is the set."""
    folders = [new, *(path for path in sorted(new.rglob("*")) if path.is_dir())]
    if is_set and not any(map(is_set, folders)):
        held = ", ".join(sorted(path.name for path in new.iterdir())[:5])
        shutil.rmtree(new)
        raise CourseError(
            f"{archive}: expected the set {target.name}; it holds {held or 'nothing'}. Nothing of it was "
            "kept. Put the right one in its place, or delete it, and run again."
        )
    os.replace(new, target)


def _is_archive(path):
    return path.suffix.lower() == ".zip" and not path.name.startswith(".")


def _download_kaggle(handle, folder, most, is_set, limits):
    cache, by_hand = folder / ".kaggle", _kaggle_by_hand(handle, folder)
    with download.writing(folder, cache), _quiet_kagglehub(cache):
        found = _ask_kaggle(handle, cache, by_hand, limits)
        size = sum(path.stat().st_size for path in found.rglob("*") if path.is_file())
        if size > most:
            shutil.rmtree(cache)
            raise CourseError(f"{handle}: expected at most {most} bytes; {size} came, and were deleted.{by_hand}")
        _settle(found, folder / handle.split("/")[1], is_set, handle)
        shutil.rmtree(cache)


def _kaggle_by_hand(handle, folder):
    page = "https://www.kaggle.com/datasets/" + "/".join(handle.split("/")[:2])
    return (
        f"\nBy hand: download the archive in a browser from {page}, put the .zip, as it is, into {folder}, and run "
        "again; or unpack it anywhere, and run again with RAW=<that folder>."
    )


@contextmanager
def _quiet_kagglehub(cache):
    """Let kagglehub load into `cache`, with no word but its progress bar (with `$CXR_QUIET` without that)."""
    import kagglehub  # noqa: F401 - before the redirection: it keeps the sys.stdout that it finds

    # The caches of Kaggle and Colab are mounted elsewhere and read-only: nothing could be moved from there.
    wanted = {"KAGGLEHUB_CACHE": str(cache), "DISABLE_KAGGLE_CACHE": "true", "DISABLE_COLAB_CACHE": "true"}
    before = {name: os.environ.get(name) for name in wanted}
    logger = logging.getLogger("kagglehub")
    level = logger.level
    try:
        os.environ.update(wanted)
        logger.setLevel(logging.CRITICAL + 1)
        bar = redirect_stderr(io.StringIO()) if os.environ.get("CXR_QUIET") else nullcontext()
        with redirect_stdout(io.StringIO()), bar:
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _ask_kaggle(handle, cache, by_hand, limits):
    """Return the folder that kagglehub has unpacked the set into; a new try goes on with a partial archive."""
    import kagglehub
    import requests

    try:
        kagglehub.config.get_kaggle_credentials()
    except ValueError as error:
        raise CourseError(f"{error}. {_LOGIN}{by_hand}") from None
    for number in range(limits.tries):
        try:
            return Path(kagglehub.dataset_download(handle))
        except requests.HTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise CourseError(f"{handle}: Kaggle wants a log-in (answer {status}). {_LOGIN}{by_hand}") from None
            if status != 429 and status < 500:
                raise CourseError(f"{handle}: Kaggle answered {status}.{by_hand}") from None
            reason = f"the answer was {status}"
        except requests.RequestException as error:
            reason = download.reason(error)
        except (*_DAMAGED, kagglehub.exceptions.DataCorruptionError) as error:
            reason = f"a damaged archive came: {error}"
            shutil.rmtree(cache, ignore_errors=True)  # else kagglehub would go on with it
        if number + 1 < limits.tries:
            time.sleep(limits.pause * 2**number)
    raise CourseError(
        f"{handle}: does not come from Kaggle ({reason}), {limits.tries} times. Is there a network? Run "
        f"again to go on from there; behind a proxy, set HTTPS_PROXY.{by_hand}"
    )


def unpack(archive, folder, *, most):
    """Unpack a zip archive that nobody vouches for: whole or not at all.

    Parameters
    ----------
    archive : path-like
    folder : path-like
        Must not be there yet.
    most : int
        Bytes that the files may have, all together.

    Raises
    ------
    CourseError
        Not a zip, damaged, encrypted, larger than `most`, an entry that leads out of `folder`, no room.
    """
    archive, folder = Path(archive), Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    if folder.exists():
        raise CourseError(f"{folder}: expected not to be there yet. Delete it, or leave it as it is.")
    try:
        with zipfile.ZipFile(archive) as file:
            entries = _safe_entries(file, archive, most)
            with download.writing(folder.parent):
                _write_entries(file, entries, part)
                os.replace(part, folder)
    except CourseError:
        raise
    except (*_DAMAGED, OSError) as error:
        raise CourseError(
            f"{archive}: expected a zip archive; it is damaged or something else ({error}). Nothing of "
            "it was kept. Download it again."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _safe_entries(file, archive, most):
    entries = [entry for entry in file.infolist() if not entry.is_dir()]
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if download.leads_out(entry.filename) or kind not in (0, stat.S_IFREG):
            raise CourseError(
                f"{archive}: its entry {entry.filename!r} is a link or leads out of the folder. Nothing "
                "was unpacked. Do not trust this archive: download the set from its own address."
            )
        if entry.flag_bits & 1:
            raise CourseError(
                f"{archive}: expected an open archive; {entry.filename!r} is encrypted. Nothing was "
                "unpacked. Download the set from its own address."
            )
    # The sizes may lie, but not to our harm: zipfile stops at the size that is said here, and then finds a wrong CRC.
    size = sum(entry.file_size for entry in entries)
    if size > most:
        raise CourseError(
            f"{archive}: expected at most {most} bytes when unpacked; it says {size}. Nothing was "
            "unpacked. Do not trust this archive: download the set from its own address."
        )
    return entries


def _write_entries(file, entries, part):
    shutil.rmtree(part, ignore_errors=True)  # of a killed run
    part.mkdir(parents=True)
    download.require_room(part, sum(entry.file_size for entry in entries))
    for entry in entries:
        target = part.joinpath(*re.split(r"[\\/]", entry.filename))
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(entry) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink)


def write_record(folder):
    """Write path, bytes and SHA-256 of every visible file below a folder into its files.csv."""
    folder = Path(folder)
    with written(folder / RECORD) as part, open(part, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "bytes", "sha256"))
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            hidden = any(word.startswith(".") for word in name.parts)
            ours = path.parent == folder and (_is_archive(path) or path.name == RECORD)
            if path.is_file() and not hidden and not ours:
                table.writerow((name.as_posix(), path.stat().st_size, sha256(path)))


def check_record(folder):
    """Compare a folder with its files.csv.

    Raises
    ------
    CourseError
        A file is gone or has another size, or there is no such table.
    """
    folder = Path(folder)
    try:
        with open(folder / RECORD, encoding="utf-8", newline="") as file:
            sizes = {row["path"]: int(row["bytes"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CourseError(
            f"{folder}: its table {RECORD} cannot be read ({error}). Delete the folder and fetch the set again."
        ) from None
    lost = [path for path, size in sizes.items() if not download.is_there(folder / path, size)]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise CourseError(
            f"{folder}: {', '.join(lost[:3])}{more} of {len(sizes)} files are gone or have another size "
            "than when they were fetched. Delete the folder and fetch the set again."
        )
