"""Answers to the exercises of notebook 01 on which its checks are tried, after its own."""

# %% 1 right: marks every image whose patient came before in the same label, and takes the mean
repeats = joined.duplicated(["label", "patient"]).groupby(joined["label"]).mean()

# %% 1 right: a loop over the labels, rounded, as a dict
repeats = {}
for label in labels:
    patients = joined.loc[joined["label"] == label, "patient"]
    repeats[label] = round((len(patients) - len(set(patients))) / len(patients), 2)

# %% 1 wrong: counts the first image of a patient with several as well
repeats = joined.duplicated(["label", "patient"], keep=False).groupby(joined["label"]).mean()

# %% 1 wrong: the share of people among the images
repeats = joined.groupby("label")["patient"].nunique() / joined["label"].value_counts()

# %% 1 wrong: per cent in place of shares
repeats = 100 * joined.duplicated(["label", "patient"]).groupby(joined["label"]).mean()

# %% 1 wrong: of all images, not of the label's
repeats = joined.duplicated(["label", "patient"]).groupby(joined["label"]).sum() / len(joined)

# %% 2 right: means and lengths taken away by hand, one patient's pairs set to zero
flat = cache.thumbnails[some].reshape(len(some), -1).astype("float32")
flat -= flat.mean(axis=1, keepdims=True)
flat /= np.linalg.norm(flat, axis=1, keepdims=True)
alike = flat @ flat.T
closest = round(float(np.where(patient[:, None] == patient, 0, alike).max()), 2)

# %% 2 right: pandas, and a loop over the patients
alike = pd.DataFrame(cache.thumbnails[some].reshape(len(some), -1).T.astype(float)).corr()
closest = max(alike.loc[patient == name, patient != name].to_numpy().max() for name in set(patient))

# %% 2 wrong: an image compared with itself
alike = np.corrcoef(cache.thumbnails[some].reshape(len(some), -1))
closest = alike.max()

# %% 2 wrong: cosines, whose means were not taken away
flat = cache.thumbnails[some].reshape(len(some), -1).astype(float)
flat /= np.linalg.norm(flat, axis=1, keepdims=True)
alike = flat @ flat.T
closest = alike[patient[:, None] != patient].max()

# %% 2 wrong: the highest within one patient
alike = np.corrcoef(cache.thumbnails[some].reshape(len(some), -1))
closest = alike[(patient[:, None] == patient) & ~np.eye(len(some), dtype=bool)].mean()

# %% 2 wrong: bytes multiplied as bytes
flat = cache.thumbnails[some].reshape(len(some), -1)
alike = (flat @ flat.T) / 255
closest = alike[patient[:, None] != patient].max()

# %% 3 right: of each label and age group, a random sample of one size
counted = pd.crosstab(joined["label"], group).min()
samples = [
    joined[(joined["label"] == label) & (group == age)].sample(int(counted[age]), random_state=1)
    for label in labels
    for age in counted.index
]
chosen = joined.index.isin(pd.concat(samples).index)

# %% 3 right: image by image, as long as its label may still give some of this age
counted = pd.crosstab(joined["label"], group).min()
given_so_far, chosen = {}, []
for label, age in zip(joined["label"], group):
    given_so_far[label, age] = given_so_far.get((label, age), 0) + 1
    chosen.append(given_so_far[label, age] <= counted[age])

# %% 3 right: every label brought to one share of children, that of all labels' scarcest
counted = pd.crosstab(joined["label"], group)
child = counted["child"].min() / (counted["child"].min() + counted["adult"].min())
chosen = np.zeros(len(joined), bool)
for label in labels:
    most = min(counted.loc[label, "child"] / child, counted.loc[label, "adult"] / (1 - child))
    for age, share in (("child", child), ("adult", 1 - child)):
        rows = np.flatnonzero((joined["label"] == label) & (group == age))
        chosen[rows[: int(round(most * share))]] = True

# %% 3 wrong: the same number of images of each label
least = joined["label"].value_counts().min()
chosen = joined.groupby("label").cumcount() < least

# %% 3 wrong: adults only
chosen = (group == "adult").to_numpy()

# %% 3 wrong: as many children as adults in the whole, not in each label
chosen = (group.groupby(group).cumcount() < group.value_counts().min()).to_numpy()

# %% 3 wrong: row numbers in place of truth values
chosen = np.flatnonzero(group == "adult")
