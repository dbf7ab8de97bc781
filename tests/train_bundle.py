"""Features, a short training and a bundle in the folder given, with a line before each step: for test_killed.py."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

from test_models import CARD, OPTIONS, blobs  # noqa: E402

from utils import backbones, models, training  # noqa: E402


def say(step):
    """Tell the parent, which may now kill us, and go on."""
    print(step, flush=True)


def main(folder):
    """Do what the module says."""
    pixels, targets = blobs(512, seed=1)
    extractor = backbones.build("PhantomNet", (32, 32, 1), weights="none", seed=1)
    say("features")
    backbones.cached_features(extractor, pixels, "blobs", folder / "features")
    model = models.small_cnn((32, 32, 1), seed=1, widths=(8, 16))
    say("training")
    training.fit(model, (pixels, targets), epochs=20, seed=1)
    say("bundle")
    models.save_bundle(folder / "models" / "run.small", model, options=OPTIONS, card=CARD)
    say("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
