"""What the page and the interface say about the models."""

import math

from utils import images, report
from utils.classifier import PURPOSE

MAX_BYTES = 32_000_000  # of one request
MAX_FILES = 20  # of one request


def at_threshold(classifier):
    """Find sensitivity and specificity at the threshold that decides.

    Parameters
    ----------
    classifier : utils.classifier.Classifier

    Returns
    -------
    rows : list of dict
        `model` and, each a dict with `value`, `lo`, `hi`, `n` (None: not recorded) or None, `sensitivity` and
        `specificity`; one for each test the card records.
    note : str
        Why there are none, or "".
    """
    if len(classifier.members) > 1:
        return [], "None are recorded for the average of several models; each model's own stand on the page about it."
    card = classifier.members[0].card
    if classifier.threshold != card["threshold"]:
        own = "the most probable class" if card["threshold"] is None else f"{card['threshold']:.3f}"
        return [], (f"None are recorded at the threshold {classifier.threshold:.3f}, which was set by hand; those of "
                    f"the model's own, {own}, stand on the page about it.")  # fmt: skip
    found = {}
    for name, value in card.get("metrics", {}).items():
        task, _, rest = name.partition(".")
        model, _, metric = rest.rpartition(".")
        if task == card["task"] and model and metric in ("sensitivity", "specificity") and _finite(value) is not None:
            beside = {end: _finite(card["metrics"].get(f"{name}.{end}")) for end in ("lo", "hi", "n")}
            score = {"value": value, **beside}
            found.setdefault(model, {"sensitivity": None, "specificity": None})[metric] = score
    rows = [{"model": model.replace("_", " "), **scores} for model, scores in found.items()]
    return rows, "" if rows else "This model's bundle records none: nobody knows how often it is right."


def about(classifier):
    """Say what the models are, for `/api/models`.

    Parameters
    ----------
    classifier : utils.classifier.Classifier

    Returns
    -------
    dict
        What JSON can hold.
    """
    return {
        "name": classifier.name,
        "purpose": PURPOSE,
        "simulated": classifier.simulated,
        "classes": classifier.classes,
        "threshold": classifier.threshold,
        "columns": classifier.columns,
        "limits": {"files": MAX_FILES, "bytes": MAX_BYTES, "pixels": images.MAX_PIXELS},
        "models": [_member(member) for member in classifier.members],
    }


def _member(member):
    card = member.card
    told = ("task", "classes", "threshold", "temperature", "decision", "manifest", "split", "seed", "backbones",
            "pretrained", "preprocessing", "weights", "versions", "purpose")  # fmt: skip
    return {
        "name": member.name,
        **{name: card[name] for name in told if name in card},
        "simulated": card.get("simulated", False),
        "refusal": {"fitted_on": int(member.watch.fitted_on), "limit": float(member.watch.limit)},
        "metrics": {name: _finite(value) for name, value in card.get("metrics", {}).items()},
    }


def cards(classifier):
    """Say what the page about the models shows.

    Parameters
    ----------
    classifier : utils.classifier.Classifier

    Returns
    -------
    list of dict
        One a model: `name`, `facts` (name to text) and `tables` (see `utils.report.scores`).
    """
    return [
        {"name": one["name"], "facts": _told(one), "tables": report.scores(one["metrics"])}
        for one in about(classifier)["models"]
    ]


def _told(one):
    shown = one.get("preprocessing", {})
    threshold = one["threshold"]
    built = f"{' + '.join(one.get('backbones', []))}, pretrained: {one['pretrained']}" if "pretrained" in one else ""
    told = {
        "Question": report.TASKS.get(one["task"], one["task"]),
        "Answers": ", ".join(one["classes"]),
        "Seen in training": "simulated X-rays only, never a real one" if one["simulated"] else "real X-rays",
        "Images": one.get("manifest", ""),
        "Split": one.get("split", ""),
        "Built on": built,
        "What it sees": f"{shown['size']} × {shown['size']} pixels, {' + '.join(shown['channels'])}" if shown else "",
        "Decision": "the most probable class" if threshold is None else f"{one['classes'][1]} from a probability of "
                    f"{threshold:.3f} on ({one.get('decision', '')})",
        "Calibration": f"temperature {one['temperature']:.3f}, fitted on the validation images",
        "Refusal": f"what lies further from {one['refusal']['fitted_on']:,} images of the training than such X-rays do",
        "Weights": one["weights"],
        "Made with": ", ".join(f"{name} {number}" for name, number in one.get("versions", {}).items()),
        "Purpose": one.get("purpose", PURPOSE),
    }  # fmt: skip
    return {name: text for name, text in told.items() if text}


def _finite(value):
    """Return a number, or None for what is none: JSON knows no NaN."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
