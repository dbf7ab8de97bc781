"""Run the way from download to split in child processes, kill each at a random moment, run again: for test_killed.py.

`killed.py PINS WORK TRIALS SEED` prints, as JSON, the undisturbed fingerprint and, for each trial, the exit code, how far it came and the
fingerprint of the next run. The parent imports everything once and forks the children, so that each starts at once.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

from bad_input import whole_way  # noqa: E402

from utils.sources import _fetch  # noqa: E402


def child(work, answer=None):
    """Fork a child that goes the whole way in a data root; it writes its fingerprint to `answer`."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ["CXR_WORK_DIR"] = str(work)
        found = whole_way("darkcovidnet", None)
        if answer:
            answer.write_text(json.dumps(found))
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def undisturbed(work):
    """Return fingerprint and seconds of a run that nobody disturbs."""
    answer, start = work.with_suffix(".json"), time.monotonic()
    _, status = os.waitpid(child(work, answer), 0)
    if status:
        raise SystemExit(f"a run in {work} failed")
    return json.loads(answer.read_text()), time.monotonic() - start


def stage(work):
    """Return how far a killed run came."""
    names = {path.name for path in work.rglob("*")}
    images = sum(name.endswith(".png") for name in names)
    if not images:
        return "nothing in its place"
    return "split" if "manifest.json" in names else "cache" if "processed" in names else "part of the download"


def main(pins, work, trials, seed):
    """Do what the module says."""
    _fetch.PINS = Path(pins)
    moments = random.Random(int(seed))
    expected, seconds = undisturbed(Path(work, "whole"))
    results = []
    for trial in range(int(trials)):
        root = Path(work, str(trial))
        process = child(root)
        moment = moments.uniform(0, seconds)
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if status == 0:  # it was faster than the run that was timed: on a busy machine one is no measure
            seconds = moment
        reached = stage(root)
        results.append([os.waitstatus_to_exitcode(status), reached, undisturbed(root)[0]])
    print(json.dumps({"expected": expected, "results": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
