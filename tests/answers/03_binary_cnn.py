"""Answers on which the checks of notebook 03 are tried: they go on where the notebook has ended."""

# ruff: noqa: F811

# %% 1 right: ask networks that are built like that
three = models.small_cnn(pixels.shape[1:], seed=0).get_layer("conv3").kernel
of_conv = int(np.prod(three.shape[2:])) * 5 * 5
of_dense = np.zeros((np.prod(pixels.shape[1:]), 64)).size + np.zeros(64).size

# %% 1 right: scale what the table of layers says
of_conv = layers.loc["conv3", "parameters"] * 25 / 9
of_dense = 64 * len(pixels[0].ravel()) + 64

# %% 1 wrong: one map below in place of 32
of_conv = 5 * 5 * 48
of_dense = (128 * 128 + 1) * 64

# %% 1 wrong: biases of the dense layer forgotten
of_conv = 5 * 5 * 32 * 48
of_dense = 128 * 128 * 64

# %% 1 wrong: a bias for each map of the convolution
of_conv = 5 * 5 * 32 * 48 + 48
of_dense = (128 * 128 + 1) * 64

# %% 2 right: logistic regression, hardly restrained
tossed = pd.Series(target[few]).sample(frac=1, random_state=3).to_numpy()
linear = make_pipeline(StandardScaler(), LogisticRegression(C=100, max_iter=1000)).fit(small[few], tossed)
said_few, said_validation = (linear.predict_proba(small[rows])[:, 1] for rows in (few, validation))

# %% 2 right: a decision tree without a limit
tossed = np.random.default_rng(5).permutation(target[few]).astype(int)
tree = DecisionTreeClassifier(random_state=0).fit(small[few], tossed)
said_few, said_validation = list(tree.predict(small[few])), tree.predict(small[validation])

# %% 2 wrong: the labels were not shuffled
tossed = target[few]
tree = DecisionTreeClassifier(random_state=0).fit(small[few], tossed)
said_few, said_validation = tree.predict(small[few]), tree.predict(small[validation])

# %% 2 wrong: with a cure, a tree that may not grow
tossed = np.random.default_rng(5).permutation(target[few])
tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(small[few], tossed)
said_few, said_validation = tree.predict_proba(small[few])[:, 1], tree.predict_proba(small[validation])[:, 1]

# %% 2 wrong: shuffled, but fitted on the true labels
tossed = np.random.default_rng(5).permutation(target[few])
tree = DecisionTreeClassifier(random_state=0).fit(small[few], target[few])
said_few, said_validation = tree.predict(small[few]), tree.predict(small[validation])

# %% 2 wrong: the probabilities of both classes
tossed = np.random.default_rng(5).permutation(target[few])
tree = DecisionTreeClassifier(random_state=0).fit(small[few], tossed)
said_few, said_validation = tree.predict_proba(small[few]), tree.predict_proba(small[validation])


# %% 3 right: from the spread of the patients' own shares
def patients_for(half):
    hits = pd.Series(answers["small CNN"] == target[validation])
    return np.ceil((1.96 * hits.groupby(patient[validation]).mean().std() / half) ** 2)


# %% 3 right: more and more patients are drawn until the interval is narrow enough
def patients_for(half):
    hits = pd.DataFrame({"hits": answers["small CNN"] == target[validation], "images": 1})
    each, rng, number, width = hits.groupby(patient[validation]).sum().to_numpy(), np.random.default_rng(0), 20, 1
    while width > 2 * half:
        number = int(number * 1.15)
        drawn = each[rng.integers(0, len(each), (300, number))].sum(axis=1)
        width = np.subtract(*np.percentile(drawn[:, 0] / drawn[:, 1], [97.5, 2.5]))
    return number


# %% 3 wrong: images in place of patients
def patients_for(half):
    now = on_validation["small CNN"]
    return int(now.n * ((now.hi - now.lo) / 2 / half) ** 2)


# %% 3 wrong: the whole width for half of it
def patients_for(half):
    now = on_validation["small CNN"]
    return int(len(set(patient[validation])) * ((now.hi - now.lo) / half) ** 2)


# %% 3 wrong: twice the patients for half the width
def patients_for(half):
    now = on_validation["small CNN"]
    return int(len(set(patient[validation])) * (now.hi - now.lo) / 2 / half)
