"""Make the accepted ranges of a data set and profile: five seeds, one thread and two, and an older processor.

    python tests/contracts/measure.py [DATASET [RAW]]

Runs every notebook for each of them in a temporary folder (some ten minutes) and writes tests/contracts/NN_name.json.
Look at the differences before you commit them: a range that has become wider is a result, not a formality.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import config  # noqa: E402
from utils.files import write_text  # noqa: E402

ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
TWO_THREADS = {"TF_NUM_INTRAOP_THREADS": "2"}
VARIANTS = [(seed, TWO_THREADS) for seed in (7, 1, 2, 3, 4)] + [
    (7, ONE_THREAD),
    (7, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
]


def main(dataset="phantom", raw=""):
    """Measure every variant and write the ranges."""
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for seed, settings in VARIANTS:
            run = config.start(dataset, "fast", raw, seed)
            command = [sys.executable, "-m", "utils.course", "run", "--dataset", dataset, "--raw", raw]
            environment = {**os.environ, **settings, "CXR_WORK_DIR": work}
            # 1 is fine here: the old ranges may not hold any more.
            subprocess.run([*command, "--seed", str(seed)], cwd=ROOT, env=environment, check=False)
            for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
                results = Path(work, "results", run.name, f"{notebook.stem}.json")
                if not results.exists():
                    sys.exit(f"{notebook.stem} failed with seed {seed}, {settings}: mend it first.")
                metrics = json.loads(results.read_text())["metrics"]
                found.setdefault(notebook.stem, []).append(metrics)
    key = config.start(dataset, "fast", raw).name
    for notebook, runs in found.items():
        file = ROOT / "tests" / "contracts" / f"{notebook}.json"
        ranges = json.loads(file.read_text()) if file.exists() else {}
        ranges[key] = {name: accepted([metrics[name] for metrics in runs]) for name in runs[0] if is_held(name)}
        write_text(file, json.dumps(ranges, indent=1) + "\n")


def is_held(name):
    """Ends of intervals follow from score and n; sensitivity, specificity, precision trade places, areas and accuracy hold."""
    return not re.search(r"\.(lo|hi)$|(sensitivity|specificity|(?<!average_)precision)(_at_card)?$", name)


def accepted(values):
    """Return [lo, hi] around the measured values: counts get their spread, scores half of it and 0.02, at most 1."""
    lo, hi = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return [lo - (hi - lo), hi + (hi - lo)]
    margin = (hi - lo) / 2 + 0.02
    highest = round(hi + margin, 3)
    return [round(lo - margin, 3), 1 if hi <= 1 and highest > 0.97 else highest]


if __name__ == "__main__":
    main(*sys.argv[1:])
