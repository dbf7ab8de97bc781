"""Who is one patient, which images are twins, and a split that keeps patients together."""

import hashlib
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from utils.errors import CourseError

PARTS = ("train", "validation", "test")
HASH_DISTANCE = 10  # bits of 64; alone it calls nearly every pair of chest X-rays alike: a first, cheap sieve
TWIN_CORRELATION = 0.985  # of 48 x 48 thumbnails: leaves the true twins


def dhash(thumbnails):
    """Difference hash: is each pixel of a 9 x 8 thumbnail brighter than its left neighbour? (N. Krawetz, 2013)

    Parameters
    ----------
    thumbnails : numpy.ndarray
        uint8, (images, height, width).

    Returns
    -------
    numpy.ndarray
        uint64, (images,).
    """
    small = np.stack([cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA) for image in np.asarray(thumbnails)])
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def find_twins(thumbnails):
    """Find pairs of images that are the same picture, perhaps rescaled or compressed anew.

    First the hashes (at most `HASH_DISTANCE` of 64 bits apart), then the correlation of the thumbnails. A picture that
    was cropped in between is not found: its file name or its table may still tell.

    Parameters
    ----------
    thumbnails : numpy.ndarray
        uint8, (images, 48, 48): whole images squashed to a square, since sets differ in how they treat the aspect.

    Returns
    -------
    pandas.DataFrame
        `first`, `second` (row numbers, first < second) and `correlation`, the most alike first.
    """
    if not len(thumbnails):
        return pd.DataFrame({"first": [], "second": [], "correlation": []}).astype({"first": int, "second": int})
    hashes = dhash(thumbnails)
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    found = []
    for start in range(0, len(hashes), 512):  # blocks, so that memory stays small
        block = slice(start, start + 512)
        near = np.bitwise_count(hashes[block, None] ^ hashes[None, start:]) <= HASH_DISTANCE
        alike = near & (flat[block] @ flat[start:].T >= TWIN_CORRELATION)
        found += [(start + i, start + j) for i, j in np.argwhere(alike) if i < j]
    twins = pd.DataFrame(found, columns=["first", "second"], dtype="int64")
    twins["correlation"] = [float(flat[i] @ flat[j]) for i, j in found]
    return twins.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def join_patients(manifest, twins):
    """Give every image a patient: images of one known patient, or twins of each other, are one.

    Parameters
    ----------
    manifest : pandas.DataFrame
        With `path` and `patient` (missing where unknown).
    twins : pandas.DataFrame
        Pairs of row numbers, from `find_twins`.

    Returns
    -------
    pandas.DataFrame
        A copy with `patient` complete. A group without any known patient is called `unknown/` and the path of its
        first image; one that holds several known patients takes the first of their names.
    """
    known = manifest["patient"].notna().to_numpy()
    codes = pd.factorize(manifest["patient"])[0]
    rows = np.arange(len(manifest))
    first_row = pd.Series(rows[known]).groupby(codes[known]).transform("min").to_numpy()
    one = np.concatenate([rows[known], twins["first"].to_numpy(int)])
    other = np.concatenate([first_row, twins["second"].to_numpy(int)])
    links = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows)))
    group = pd.Series(connected_components(links, directed=False)[1])
    names = manifest["patient"].astype("object").reset_index(drop=True)
    named = names.groupby(group).transform("min") if known.any() else names
    unnamed = "unknown/" + manifest["path"].reset_index(drop=True).groupby(group).transform("min")
    return manifest.assign(patient=named.where(named.notna(), unnamed).to_numpy())


def split_by_patient(manifest, *, seed):
    """Part the images into train (60 %), validation (20 %) and test (20 %), no patient in two of them.

    Parameters
    ----------
    manifest : pandas.DataFrame
        With `label` and complete `patient`.
    seed : int

    Returns
    -------
    numpy.ndarray
        str, (rows,): "train", "validation" or "test". Labels are spread as evenly as whole patients allow.

    Raises
    ------
    CourseError
        A label with fewer than five patients, or so few that some part would miss it.
    """
    patients = manifest.groupby("label")["patient"].nunique()
    few = patients[patients < 5]
    if len(few):
        raise CourseError(
            f"A split needs at least 5 patients a label; {few.index[0]} has {few.iloc[0]}. "
            "Add images of other patients, or leave the class out."
        )
    for attempt in range(50):  # patients with many images, or of two labels, may leave a part without a label
        fold = np.empty(len(manifest), int)
        for number, (_, held_out) in enumerate(
            folds(manifest["label"], manifest["patient"], seed=seed + 1000 * attempt)
        ):
            fold[held_out] = number
        part = np.array(["test", "validation", "train", "train", "train"])[fold]
        if pd.crosstab(manifest["label"], part).to_numpy().all():
            break
    else:
        raise CourseError("No split was found in which every part has every label: too few patients of some label.")
    shared = patients_on_both_sides(manifest, part)
    assert not shared, f"{shared} patients on both sides"  # what everything else rests on
    return part


def folds(labels, patients, *, seed):
    """Part the rows for cross-validation: five folds (fewer where a label has fewer patients), patients together.

    Parameters
    ----------
    labels, patients : array-like
        One a row.
    seed : int

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Row numbers to fit on and row numbers held out, as scikit-learn's `cv` takes them.

    Raises
    ------
    CourseError
        A label with one patient only.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    count = pd.Series(patients).groupby(labels).nunique()
    if count.min() < 2:
        raise CourseError(
            f"Cross-validation needs at least 2 patients a label; {count.idxmin()} has {count.min()}. "
            "Add images of other patients, or leave the class out."
        )
    splitter = StratifiedGroupKFold(min(5, int(count.min())), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels, patients))


def rounds(labels, patients, part, *, count, seed, rows=None):
    """Say what is fitted on and what is held out, to judge a finished recipe.

    Parameters
    ----------
    labels, patients : array-like
        One a row.
    part : array-like
        str, (rows,): the saved split.
    count : int
        1: everything but the test is fitted on, the test is held out. More: as `folds` parts them, so that each row
        is held out once.
    seed : int
        Of the folds.
    rows : numpy.ndarray, optional
        Only these row numbers take part: a task leaves labels out.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Row numbers to fit on and row numbers held out; no patient in both.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    if count > 1:
        made = folds(np.asarray(labels)[rows], np.asarray(patients)[rows], seed=seed)
        return [(rows[fit], rows[held]) for fit, held in made]
    tested = np.asarray(part)[rows] == "test"
    return [(rows[~tested], rows[tested])]


def split_at_random(manifest, *, seed):
    """Part the images as if each were a patient of its own: the mistake, for comparison.

    Same shares and the same spread of labels as `split_by_patient`.
    """
    alone = manifest.assign(patient=np.arange(len(manifest)))
    return split_by_patient(alone, seed=seed)


class LeakyAndClean(NamedTuple):
    """Row numbers: one test set, and two training sets of one size."""

    test: np.ndarray  # one image of each of half the patients who have several
    clean: np.ndarray  # no image of a test patient
    leaky: np.ndarray  # the test patients' other images, and clean ones


def leaky_and_clean(manifest, *, seed):
    """Choose one test set and two training sets that differ in nothing but the leak.

    Parameters
    ----------
    manifest : pandas.DataFrame
        With complete `patient`.
    seed : int

    Returns
    -------
    LeakyAndClean
        Empty test set when no patient has several images.
    """
    rng = np.random.default_rng(seed)
    order = pd.Series(rng.permutation(len(manifest)))
    patients = manifest["patient"].to_numpy()[order]
    several = pd.Series(patients).value_counts(sort=False).loc[lambda count: count > 1].index.sort_values()
    chosen = pd.Series(patients).isin(rng.permutation(several)[: (len(several) + 1) // 2])
    first = ~pd.Series(patients).duplicated()
    test, siblings, others = order[chosen & first], order[chosen & ~first], order[~chosen]
    leaky = np.concatenate([siblings, others])[: len(others)]
    return LeakyAndClean(test.to_numpy(), others.to_numpy(), leaky)


def patients_on_both_sides(manifest, part):
    """Return how many patients have images in more than one part.

    Parameters
    ----------
    manifest : pandas.DataFrame
        With complete `patient`.
    part : numpy.ndarray
        str, (rows,).
    """
    parts = pd.Series(part).groupby(manifest["patient"].to_numpy()).nunique()
    return int((parts > 1).sum())


def split_hash(manifest, part):
    """Return 12 hex digits that stand for which image content lies in which part, whatever the order of rows."""
    lines = sorted(f"{sha256} {name}" for sha256, name in zip(manifest["sha256"], part, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
