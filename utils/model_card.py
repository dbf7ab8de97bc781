"""A model card, filled from what a run has left behind.

The items follow two reporting guidelines, in our words: CLAIM, the checklist for artificial intelligence in medical imaging
(Tejani et al. 2024, Radiology: Artificial Intelligence, doi:10.1148/ryai.240300), and TRIPOD+AI, for prediction models
(Collins et al. 2024, BMJ 385:e078378). Every item has an answer. "not applicable: reason" and "not known: reason" are answers.
"""

import numpy as np
import pandas as pd

from utils import metrics
from utils.files import write_text

NOT_RECORDED = "not known: not recorded in this data set"


def fill(run, card, table, part, *, model, scores, failures):
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
        On the test images, by name.
    failures : str
        What was found about the mistakes.

    Returns
    -------
    pandas.DataFrame
        section, item, answer; one row an item, no answer empty.
    """
    sections = {
        "Purpose": _purpose(run, card),
        "Data": _data(run, table) | _people(run, table) | _labels(run),
        "Preparation": _preparation(card, table, part),
        "Model": _model(card, model),
        "Evaluation": _evaluation(card, scores, failures),
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


def _purpose(run, card):
    simulated = run.dataset == "phantom"
    return {
        "Question": f"{card['task']}: {', '.join(card['classes'])}, from one frontal chest radiograph",
        "Intended use": card["purpose"],
        "Intended users": "students and teachers of medical image classification",
        "Must not be used for": "any decision about a person",
        "Role in care": "not applicable: no use in care is intended",
        "Study design": "simulation"
        if simulated
        else "retrospective: radiographs that others have collected and published",
    }


def _data(run, table):
    simulated = run.dataset == "phantom"
    return {
        "Data set": f"{run.short_dataset}, profile {run.profile}",
        "Sources": _counted(table["source"]),
        "Setting and dates": "not applicable: simulated"
        if simulated
        else "not known: the manifest has neither; what the authors of the set say stands in notebook 01",
        "Who was included": "readable frontal radiographs with a known label; notebook 01 counts what each step leaves out",
        "Number": f"{len(table)} images of {table['patient'].nunique()} patients",
        "Reason for this number": "not applicable: nothing was calculated beforehand; intervals show what it allows",
        "De-identification": "not applicable: nobody is behind a simulated radiograph"
        if simulated
        else "done by those who published the set; nothing but pixels reaches the model",
    }


def _people(run, table):
    age = table["age"].dropna()
    missing = table[["view", "sex", "age"]].isna().mean()
    return {
        "Age": f"median {age.median():.0f}, {age.min():.0f} to {age.max():.0f} years" if len(age) else NOT_RECORDED,
        "Sex": _counted(table["sex"]),
        "View": _counted(table["view"]),
        "Ethnicity": "not applicable: simulated" if run.dataset == "phantom" else NOT_RECORDED,
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
        f"{name} {np.sum(part == name)} images of {table.loc[part == name, 'patient'].nunique()} patients"
        for name in ("train", "validation", "test")
    ]
    return {
        "Preprocessing": ", ".join(f"{name} {_plain(value)}" for name, value in told.items()),
        "Version of the preprocessing": str(card["preprocessing"]["version"]),
        "Partition": "; ".join(counts),
        "Level of the partition": "patients: none is in two parts",
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


def _evaluation(card, scores, failures):
    found = {
        name: f"{s.value:.3f}, 95 % interval {metrics.interval(s)}, n = {s.n} images" for name, s in scores.items()
    }
    return {
        "Tested on": "the test images of the same sources, once, after everything was chosen",
        "Uncertainty": "95 % intervals from drawing whole patients with replacement",
        **{f"Score: {name}": text for name, text in found.items()},
        "Subgroups": "by view, sex, age and source, as far as recorded: notebook 05, section 8",
        "Failures": failures,
        "Other hospitals": "not known: not measured here; a score does not travel (notebook 07)",
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
        "Data access": "built in" if run.dataset == "phantom" else "as notebook 01 says, set by set, with licences",
    }


def _counted(column):
    counts = column.astype("object").fillna("not recorded").value_counts()
    if list(counts.index) == ["not recorded"]:
        return NOT_RECORDED
    shown = [f"{value} {count}" for value, count in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _plain(value):
    return " + ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
