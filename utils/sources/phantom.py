"""The simulated radiographs of `utils.phantom`: written to disk once, then read like any real set.

A phantom's `source` is its simulated hospital. Its size follows the profile, so it is never drawn from.
"""

from utils import config, phantom
from utils.sources._selection import FRONTAL, Selection, Source

SOURCE = Source(
    name="phantom",
    title="Simulated chest radiographs",
    address="built in: utils/phantom.py",
    licence="the course's own",
    citation="none: computed by this course, see utils/phantom.py for the papers it follows",
    problems=(
        "Simulated: no result on it says anything about patients.",
        "The diseases are drawn by rules, so they are easier to tell apart than real ones.",
    ),
    how_to_get="It is made on the first run; nothing is downloaded.",
)


def find(run):
    """Return the folder of the phantoms, which need not exist yet."""
    return config.data_root() / "raw" / f"phantom-{run.settings.phantom_patients}-v{phantom.VERSION}"


def read(run):
    """Return the Selection of the run's phantoms; they are written first where they are not there yet."""
    root = find(run)
    rows = phantom.write(root, patients=run.settings.phantom_patients, seed=config.PHANTOM_SEED, size=224)
    selection = Selection(root, rows, sources=(SOURCE,), why="every simulated image")
    selection.drop_what_is_no_image()
    selection.drop_views(FRONTAL)
    return selection
