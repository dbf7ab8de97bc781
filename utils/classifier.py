"""Model bundles that answer for files: what the command line and the web app share, so that both say the same.

Data travels one way: the bytes of a file -> `Classifier.look` -> `Classifier.rows`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from utils import calibration, config, explain, images, models, refusal
from utils.errors import CourseError, ImageError
from utils.files import sha256

PURPOSE = "for teaching, not for diagnosis"
_THREADS = ThreadpoolController()


class Member(NamedTuple):
    """One opened bundle."""

    name: str  # of its folder
    model: object
    step: object  # pixels -> probabilities and features, compiled once
    options: images.Options
    card: dict
    watch: refusal.Refusal


class Look(NamedTuple):
    """A file as the models will see it: `views`, one uint8 array a member; or, with `error`, why it cannot be read."""

    sha256: str
    views: tuple = ()
    error: str = ""


class Classifier:
    """One bundle, or several whose calibrated probabilities are averaged.

    Parameters
    ----------
    folders : sequence of path-like
        Bundles of the same task and classes. None: the one that is part of the course.
    threshold : float, optional
        Of two classes, where the second is called: its calibrated probability and above. None: the one of the card; of
        several bundles, the mean.

    Attributes
    ----------
    members : list of Member
    name : str
        Bundle and weights, for the column `model`; says what the answers are for, and whether the model has only ever
        seen simulated X-rays.
    classes : list of str
    columns : list of str
        Keys of a row: path, sha256, model, p_<class> for each class, decision, refused, error.
    threshold : float or None
        None for more than two classes: the most probable one is called.
    simulated : bool

    Raises
    ------
    CourseError
        No bundle, a damaged one, one without `refusal.npz`, or bundles that do not fit together; a threshold for more
        than two classes, or one outside 0 to 1.
    """

    def __init__(self, folders=(), *, threshold=None):
        self.members = [_open(folder) for folder in folders or [config.SHIPPED]]
        cards = [member.card for member in self.members]
        kinds = {(card["task"], *card["classes"]) for card in cards}
        if len(kinds) > 1:
            named = (
                (member.name, ", ".join((member.card["task"], *member.card["classes"]))) for member in self.members
            )
            told = " and ".join(f"{name}: {answers}" for name, answers in named)
            raise CourseError(f"Only models of the same task and the same classes can be averaged; got {told}.")
        self.classes = list(cards[0]["classes"])
        self.simulated = any(card.get("simulated", False) for card in cards)
        called = " + ".join(f"{member.name}@{member.card['weights']}" for member in self.members)
        self.name = f"{called} ({'simulated; ' if self.simulated else ''}{PURPOSE})"
        shares = [f"p_{name}" for name in self.classes]
        self.columns = ["path", "sha256", "model", *shares, "decision", "refused", "error"]
        self.threshold = self._threshold(threshold, [card["threshold"] for card in cards])

    def _threshold(self, wanted, own):
        if wanted is None:
            return None if None in own else float(np.mean(own))
        if len(self.classes) != 2:
            raise CourseError(
                f"A threshold needs two classes; this model has {len(self.classes)}: the most probable counts."
            )
        if not 0 <= wanted <= 1:
            raise CourseError(f"A threshold is a probability, from 0 to 1; got {wanted}.")
        return float(wanted)

    def look(self, data):
        """Read a file's bytes and prepare them for each member; several threads may do so at once.

        Parameters
        ----------
        data : bytes

        Returns
        -------
        Look
        """
        digest = sha256(data)
        try:
            grey = images.decode(data)
            return Look(digest, tuple(images.preprocess(grey, member.options) for member in self.members))
        except (ImageError, MemoryError) as error:
            return Look(digest, error=str(error) or "too large for the memory of this computer")

    def rows(self, named):
        """Answer for some files.

        Parameters
        ----------
        named : sequence of (str, Look)
            Paths, or whatever the answers shall be called by.

        Returns
        -------
        list of dict
            One for each, in their order, with the keys of `columns`: probabilities are float or None, the others str,
            empty where there is nothing to say. `error`: unreadable; `refused`: read, but no frontal chest X-ray.
        """
        seen = [look for _, look in named if not look.error]
        answers = iter(zip(*self.ask([look.views for look in seen])) if seen else ())
        return [self.row(path, look, *(() if look.error else next(answers))) for path, look in named]

    def row(self, path, look, shares=None, reason=""):
        """Return one row of `rows`."""
        called = ""
        if shares is not None and not reason:
            number = np.argmax(shares) if self.threshold is None else shares[1] >= self.threshold
            called = self.classes[int(number)]
        else:
            shares = [None] * len(self.classes)
        shares = [None if share is None else round(float(share), 7) for share in shares]
        values = [path, look.sha256, self.name, *shares, called, reason, look.error]
        return dict(zip(self.columns, values))

    def ask(self, views):
        """Return calibrated probabilities, float64 (images, classes), and for each image why it is refused, or ""."""
        shares, far = [], []
        for number, member in enumerate(self.members):
            answer, features = (found.numpy() for found in member.step(np.stack([one[number] for one in views])))
            answer = answer[:, 0] if answer.shape[1] == 1 else answer
            shares.append(calibration.calibrated(calibration.columns(answer), member.card["temperature"]))
            with _THREADS.limit(limits=1, user_api="blas"):  # so small, and beside the readers, several are far slower
                far.append(refusal.distances(member.watch, features) / member.watch.limit)
        odd = ~(np.array(far) <= 1)  # so is what is not a number
        refused = 2 * odd.sum(axis=0) >= len(self.members)
        return np.mean(shares, axis=0), [_reason(*one) for one in zip(refused, np.max(far, axis=0))]

    def heat(self, look, called=None):
        """Return where the models look for a class: float32 (size, size), 0 to 1, the mean of their Grad-CAMs.

        It lies over `look.views[0]`. `called`: a row's decision, which the threshold or other models may have turned
        from what a model by itself finds most probable; None: that.
        """
        size, found = look.views[0].shape[0], 0.0
        number = None if called is None else self.classes.index(called)
        for member, view in zip(self.members, look.views):
            heat = explain.grad_cam(member.model, view[None], classes=number, size=size).maps[0]
            found = found + heat / max(float(heat.max()), 1e-9) / len(self.members)
        return found


def _open(folder):
    # Where the shipped bundle lies is no part of its name; where a link points to is.
    try:
        model, options, card = models.open_bundle(folder)
        watch = refusal.load(folder)
    except OSError as error:
        raise CourseError(f"{folder} cannot be read ({error.strerror}). Mend that, and run again.") from None
    _check_card(folder, card)
    watched = refusal.watched(model)
    if watched.output_shape[1][1:] != watch.mean.shape:
        raise CourseError(f"{folder}/refusal.npz does not fit its model. Run the notebook that trains it again.")
    return Member(Path(folder).resolve().name, model, models.compiled(watched), options, card, watch)


def _check_card(folder, card):
    temperature, threshold = card.get("temperature"), card.get("threshold")
    again = "Run the notebook that trains it again."
    if not (isinstance(temperature, (int, float)) and 0 < temperature < np.inf):
        raise CourseError(f"{folder}/card.json should name a temperature above 0; it says {temperature}. {again}")
    if not (threshold is None or isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
        raise CourseError(f"{folder}/card.json should name a threshold, 0 to 1, or null; it says {threshold}. {again}")
    if not all(isinstance(name, str) for name in (card.get("task"), *card["classes"])):
        raise CourseError(f"{folder}/card.json should name a task and classes. {again}")


def _reason(refused, distance):
    if not refused:
        return ""
    return f"no frontal chest X-ray like those of the training ({distance:.2f} times as far as the limit)"
