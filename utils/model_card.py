"""A model card, filled from what a run has left behind.

The items follow two reporting guidelines, in our words: CLAIM, the checklist for artificial intelligence in medical imaging
(Tejani et al. 2024, Radiology: Artificial Intelligence, doi:10.1148/ryai.240300), and TRIPOD+AI, for prediction models
(Collins et al. 2024, BMJ 385:e078378). Every item has an answer. "not applicable: reason" and "not known: reason" are answers.
"""

import pandas as pd

from utils import metrics, splits
from utils.files import write_text

NOT_RECORDED = "not known: not recorded in this data set"


def fill(run, card, table, part, *, model, scores, remarks):
    """Answer every item for one bundle.

    Parameters
    ----------
    run : utils.config.Run
    card : dict
        The bundle's card, from `models.open_bundle`.
    table : pandas.DataFrame
        The manifest of the run.
    part : numpy.ndarray
        str, (rows,): the split.
    model : keras.Model
    scores : dict of utils.metrics.Score
        On the test images, by name; those that need a decision at the card's own.
    remarks : dict
        What else was found on the test images: answers by item, "Failures" and "Subgroups" among them.

    Returns
    -------
    pandas.DataFrame
        section, item, answer; one row an item, no answer empty.
    """
    asked = table["label"].isin(card["classes"]).to_numpy() | (card["task"] == "abnormal")
    table, part = table[asked], part[asked]
    sections = {
        "Purpose": _purpose(run, card),
        "Data": _data(run, table) | _people(run, table) | _labels(run),
        "Preparation": _preparation(card, table, part),
        "Model": _model(card, model),
        "Evaluation": _evaluation(scores) | remarks,
        "Limits and access": _limits(run),
    }
    rows = [(section, item, answer) for section, items in sections.items() for item, answer in items.items()]
    return pd.DataFrame(rows, columns=["section", "item", "answer"])


def write(run, name, filled):
    """Write a filled card as Markdown beside the results of the run, and return its path."""
    lines = [f"# Model card: {run.name}.{name}", "", "For teaching, never for diagnosis."]
    for section, items in filled.groupby("section", sort=False):
        lines += ["", f"## {section}", ""]
        lines += [f"- **{row.item}**: {row.answer}" for row in items.itertuples()]
    path = run.results / f"model_card_{name}.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _of(run, *, simulated, published, own):
    """Choose an answer by what the radiographs are: simulated, published by others, or a user's own folder."""
    return own if run.is_folder else simulated if run.dataset == "phantom" else published


def _purpose(run, card):
    return {
        "Question": f"{card['task']}: {', '.join(card['classes'])}, from one frontal chest radiograph",
        "Intended use": card["purpose"],
        "Intended users": "students and teachers of medical image classification",
        "Must not be used for": "any decision about a person",
        "Role in care": "not applicable: no use in care is intended",
        "Study design": _of(
            run,
            simulated="simulation",
            published="retrospective: radiographs that others have collected and published",
            own="not known: a folder of its user",
        ),
    }


def _data(run, table):
    unnamed = table["patient"].str.startswith("unknown/").mean()
    guessed = f"; {unnamed:.0%} of the images name no patient: there near-duplicates count as one" if unnamed else ""
    return {
        "Data set": f"{run.short_dataset}, profile {run.profile}",
        "Sources": _counted(table["source"]),
        "Setting and dates": _of(
            run,
            simulated="not applicable: simulated",
            published="not known: the manifest has neither; what the authors of the set say stands in notebook 01",
            own="not known: a folder of its user",
        ),
        "Who was included": "readable images with a known label; notebook 01 counts what each step leaves out"
        + _of(run, simulated="", published="; frontal views only, as far as recorded", own="; views are not recorded"),
        "Number": f"{len(table)} images of {table['patient'].nunique()} patients{guessed}",
        "Reason for this number": "not applicable: nothing was calculated beforehand; intervals show what it allows",
        "De-identification": _of(
            run,
            simulated="not applicable: nobody is behind a simulated radiograph",
            published="by those who published the set; the model sees pixels only",
            own="not known: up to the owner of the folder; the model sees pixels only",
        ),
    }


def _people(run, table):
    age = table["age"].dropna()
    missing = table[["view", "sex", "age"]].isna().mean()
    return {
        "Age": f"median {age.median():.0f}, {age.min():.0f} to {age.max():.0f} years" if len(age) else NOT_RECORDED,
        "Sex": _counted(table["sex"]),
        "View": _counted(table["view"]),
        "Ethnicity": _of(run, simulated="not applicable: simulated", published=NOT_RECORDED, own=NOT_RECORDED),
        "Missing values": ", ".join(f"{name} {share:.0%}" for name, share in missing.items())
        + "; none was filled in: the model sees pixels only",
    }


def _labels(run):
    if run.dataset == "phantom":
        return {
            "Reference standard": "what the simulator drew",
            "Annotators and their agreement": "not applicable: nobody annotated",
        }
    return {
        "Reference standard": "the label that comes with each image; how it was made differs between sources",
        "Annotators and their agreement": "not known: most sets do not say who labelled an image, and on what evidence",
    }


def _preparation(card, table, part):
    told = {name: value for name, value in card["preprocessing"].items() if name != "version"}
    counts = [
        f"{name}: {_counted(table.loc[part == name, 'label'])}, of {table.loc[part == name, 'patient'].nunique()} patients"
        for name in splits.PARTS
    ]
    return {
        "Preprocessing": ", ".join(f"{name} {_plain(value)}" for name, value in told.items()),
        "Version of the preprocessing": str(card["preprocessing"]["version"]),
        "Partition": "; ".join(counts),
        "Level of the partition": "patients, as far as they are known: none is in two parts",
        "Identity of data and partition": f"manifest {card['manifest']}, split {card['split']}",
    }


def _model(card, model):
    return {
        "Input": "one image, bytes, " + " x ".join(map(str, model.input_shape[1:])),
        "Output": "probability of " + (card["classes"][1] if len(card["classes"]) == 2 else "each class"),
        "Structure": f"{model.name}, {model.count_params():,} parameters",
        "Starting weights": f"{card['pretrained']} ({', '.join(card['backbones'])})"
        if "pretrained" in card
        else "random",
        "Trained on": "the training images only; notebooks 03 and 04 hold the code",
        "Selected on": "the validation images",
        "Seed": str(card["seed"]),
        "Software": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        "Identity of the weights": card["weights"],
        "Temperature": f"{card['temperature']:.3g}, fitted on the validation images",
        "Decision": card["decision"]
        + ("" if card["threshold"] is None else f": threshold {card['threshold']:.3f} on the calibrated probability"),
    }


def _evaluation(scores):
    found = {
        name: f"{s.value:.3f}, 95 % interval {metrics.interval(s)}, n = {s.n} images" for name, s in scores.items()
    }
    return {
        "Tested on": "test images of the same sources; nothing was chosen on them (03 and 04 show an accuracy on them, too)",
        "Uncertainty": "95 % intervals from drawing whole patients with replacement",
        **{f"Score: {name}": text for name, text in found.items()},
        "Other hospitals": "not known: not measured here; a score does not travel",
        "Explanations": "not applicable: none is part of the model",
    }


def _limits(run):
    return {
        "Simulated": "yes: the scores say nothing about real radiographs" if run.dataset == "phantom" else "no",
        "Known limits": "the label may follow the hospital (notebook 01, section 10); a score on this set cannot exclude it",
        "Meaning for practice": "not applicable: none",
        "Protocol and registration": "not applicable: teaching material, no study",
        "Involvement of patients": "not applicable: teaching material, no study",
        "Funding": "not applicable: no study was funded",
        "Code": "all of it: notebooks and utils of this course",
        "Data access": _of(
            run,
            simulated="built in",
            published="as notebook 01 says, set by set, with licences",
            own="not known: up to the owner of the folder",
        ),
    }


def _counted(column):
    counts = column.astype("object").fillna("not recorded").value_counts()
    if list(counts.index) == ["not recorded"]:
        return NOT_RECORDED
    shown = [f"{value} {count}" for value, count in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _plain(value):
    return " + ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
