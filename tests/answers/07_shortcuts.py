"""Answers to the exercises of notebook 07, on which its checks are tried."""


# %% 1 right: pairs counted one by one
def by_name(ill, source):
    share = np.array([ill[source == name].mean() for name in source])
    pairs = [(a > b) + (a == b) / 2 for a in share[ill] for b in share[~ill]]
    return sum(pairs) / len(pairs)


# %% 1 right: scikit-learn's AUROC, rounded
def by_name(ill, source):
    from sklearn.metrics import roc_auc_score

    share_of = pd.DataFrame({"ill": ill, "source": source}).groupby("source")["ill"].mean()
    return round(roc_auc_score(ill, [share_of[name] for name in source]), 3)


# %% 1 wrong: guesses by the number of the source, not by its share of ill
def by_name(ill, source):
    numbers = pd.factorize(source)[0]
    return metrics.weighted_auroc(ill, numbers, np.ones((1, len(ill))))[0]


# %% 1 wrong: says ill or not, by the majority of the source
def by_name(ill, source):
    share = pd.Series(ill).groupby(source).transform("mean").to_numpy()
    return metrics.weighted_auroc(ill, share > 0.5, np.ones((1, len(ill))))[0]


# %% 1 wrong: the accuracy of the majority, instead of an AUROC
def by_name(ill, source):
    share = pd.Series(ill).groupby(source).transform("mean").to_numpy()
    return np.mean((share > 0.5) == ill)


# %% 1 wrong: looks at the data set of this run, whatever is given
def by_name(ill, source):
    if len(ill) < 10:
        return 0.825
    share = pd.Series(abnormal).groupby(table["source"].to_numpy(str)).transform("mean").to_numpy()
    return metrics.weighted_auroc(abnormal, share, np.ones((1, len(share))))[0]


# %% 2 right: each of the one compared with each of the other
auc = {}
for one in ("hospital A", "hospital B"):
    for other in ("hospital A", "hospital B"):
        of_the_ill = untreated[unlinked.abnormal & (unlinked.hospital == one)]
        of_the_healthy = untreated[~unlinked.abnormal & (unlinked.hospital == other)]
        auc[one, other] = np.mean(of_the_ill[:, None] > of_the_healthy)

# %% 2 right: from ranks, as Mann and Whitney did, rounded, and held in a Series
from scipy.stats import mannwhitneyu

both_classes = pd.DataFrame({"ill": unlinked.abnormal, "hospital": unlinked.hospital, "output": untreated})
of_place = {key: group["output"] for key, group in both_classes.groupby(["ill", "hospital"])}
auc = pd.Series(
    {
        (one, other): round(mannwhitneyu(of_place[True, one], of_place[False, other]).statistic
                            / len(of_place[True, one]) / len(of_place[False, other]), 2)
        for one in ("hospital B", "hospital A")
        for other in ("hospital B", "hospital A")
    }
)  # fmt: skip

# %% 2 wrong: the hospital of the healthy named first
auc = {}
for one in ("hospital A", "hospital B"):
    for other in ("hospital A", "hospital B"):
        pick = np.where(unlinked.abnormal, unlinked.hospital == other, unlinked.hospital == one)
        auc[one, other] = metrics.auroc(unlinked.abnormal[pick], untreated[pick], unlinked.patient[pick], **rules).value

# %% 2 wrong: the phantoms that have the link
linked, output = tests["same link"], outputs["no cure"]["same link"]
auc = {}
for one in ("hospital A", "hospital B"):
    for other in ("hospital A", "hospital B"):
        pick = np.where(linked.abnormal, linked.hospital == one, linked.hospital == other)
        auc[one, other] = metrics.weighted_auroc(linked.abnormal[pick], output[pick], np.ones((1, pick.sum())))[0]

# %% 2 wrong: only the ill are chosen by their hospital
auc = {}
for one in ("hospital A", "hospital B"):
    for other in ("hospital A", "hospital B"):
        of_the_ill = untreated[unlinked.abnormal & (unlinked.hospital == one)]
        auc[one, other] = np.mean(of_the_ill[:, None] > untreated[~unlinked.abnormal])

# %% 2 wrong: two hospitals, and no pairs
auc = {}
for one in ("hospital A", "hospital B"):
    here = unlinked.hospital == one
    auc[one] = metrics.auroc(unlinked.abnormal[here], untreated[here], unlinked.patient[here], **rules).value


# %% 3 right: the middle, with every grey value equally often
def cure(pixels):
    import cv2

    middle = np.ascontiguousarray(shortcuts.central(pixels, 0.3))
    return np.stack([cv2.equalizeHist(one) for one in middle])[..., None]


# %% 3 right: the middle without what varies slowly, made equally strong
def cure(pixels):
    import cv2

    cured = []
    for one in pixels[:, 19:-19, 19:-19, 0].astype(np.float32):
        detail = one - cv2.GaussianBlur(one, (0, 0), 8)
        cured.append(np.clip(128 + 40 * detail / detail.std(), 0, 255).astype(np.uint8))
    return np.array(cured)[..., None]


# %% 3 wrong: only the tone, and letters and borders stay
def cure(pixels):
    mean, spread = pixels.mean((1, 2, 3), keepdims=True), pixels.std((1, 2, 3), keepdims=True)
    return np.clip(128 + 50 * (pixels - mean) / spread, 0, 255).astype(np.uint8)


# %% 3 wrong: the mean and the spread of all images, not of each
def cure(pixels):
    middle = shortcuts.central(pixels, 0.3).astype(np.float32)
    return np.clip(128 + 50 * (middle - middle.mean()) / middle.std(), 0, 255).astype(np.uint8)


# %% 3 wrong: pixels from 0 to 1, which the network would scale once more
def cure(pixels):
    return shortcuts.central(pixels, 0.3) / 255
