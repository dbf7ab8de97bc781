"""Answers on which the checks of notebook 04 are tried: they go on where the notebook has ended."""

# ruff: noqa: F811

# %% 1 right: counted image by image
right_of = [[], []]
for row in choose:
    votes = [ask(head, seen, [row]).argmax() == target[row] for head, (*_, seen) in zip(heads, members.values())]
    right_of[0].append(any(votes))
    right_of[1].append(all(votes))
at_least_one, all_of_them = (sum(one) / len(choose) for one in right_of)

# %% 1 right: with a table of mistakes, rounded to three places
mistakes = pd.DataFrame(
    {name: ask(head, members[name][2], choose).argmax(axis=1) != target[choose] for name, head in zip(members, heads)}
)
at_least_one, all_of_them = round(1 - mistakes.all(axis=1).mean(), 3), round(1 - mistakes.any(axis=1).mean(), 3)

# %% 1 wrong: as if mistakes were independent
alone = [
    (ask(head, seen, choose).argmax(1) == target[choose]).mean() for head, (*_, seen) in zip(heads, members.values())
]
at_least_one, all_of_them = 1 - np.prod(1 - np.array(alone)), np.prod(alone)

# %% 1 wrong: the best and the worst member
alone = [
    (ask(head, seen, choose).argmax(1) == target[choose]).mean() for head, (*_, seen) in zip(heads, members.values())
]
at_least_one, all_of_them = max(alone), min(alone)

# %% 1 wrong: images counted, no shares
rightly = [
    ask(head, seen, choose).argmax(axis=1) == target[choose] for head, (*_, seen) in zip(heads, members.values())
]
at_least_one, all_of_them = np.any(rightly, axis=0).sum(), np.all(rightly, axis=0).sum()

# %% 2 right: other random weights, the notebook's own head, sensitivity and specificity by hand
net = backbones.build("PhantomNet", grey.shape[1:], weights="none", seed=11)
random_features, reached = net.predict(grey[np.concatenate([few, validation])], verbose=0), []
for seen in (random_features, plain_features[np.concatenate([few, validation])]):
    head = fit_head(seen[None], np.arange(len(few)), covid[few])
    hit = (ask(head, seen[None], np.arange(len(few), len(seen)))[:, 1] >= 0.5) == truth
    reached.append((hit[truth == 1].mean() + hit[truth == 0].mean()) / 2)
random_score, trained_score = reached

# %% 2 right: another architecture, with random weights as well
net = backbones.build("MobileNet", grey.shape[1:], weights="none")
random_features = [*models.predict(net, grey[few]), *models.predict(net, grey[validation])]
head = training.linear_head(np.array(random_features)[: len(few)], covid[few])
random_score = round(balanced_accuracy_score(truth, head.predict(np.array(random_features)[len(few) :])), 2)
head = training.linear_head(plain_features[few], covid[few])
trained_score = balanced_accuracy_score(truth, head.predict_proba(plain_features[validation])[:, 1] >= 0.5)

# %% 2 wrong: the weights are the learned ones
rows = np.concatenate([few, validation])
random_features = models.predict(backbones.build("PhantomNet", grey.shape[1:], weights="phantom"), grey[rows])
head = training.linear_head(random_features[: len(few)], covid[few])
random_score = trained_score = balanced_accuracy_score(truth, head.predict(random_features[len(few) :]))

# %% 2 wrong: scored on the images that the head was fitted on
rows = np.concatenate([few, validation])
random_features, reached = models.predict(backbones.build("PhantomNet", grey.shape[1:], weights="none"), grey[rows]), []
for seen in (random_features, plain_features[rows]):
    head = training.linear_head(seen[: len(few)], covid[few])
    reached.append(balanced_accuracy_score(covid[few], head.predict(seen[: len(few)])))
random_score, trained_score = reached

# %% 2 wrong: the features of the training images alone
random_features = models.predict(backbones.build("PhantomNet", grey.shape[1:], weights="none"), grey[few])
random_score, trained_score = 0.6, 0.9


# %% 3 right: the mean of each class
def few_shot(seen, labels, asked):
    scale = seen.std(axis=0) + 1e-3
    far = [np.linalg.norm((asked - seen[labels == one].mean(axis=0)) / scale, axis=1) for one in (0, 1)]
    return far[0] / (far[0] + far[1])


# %% 3 right: a linear head, as in section 3
def few_shot(seen, labels, asked):
    return training.linear_head(seen, labels).predict_proba(asked)[:, 1]


# %% 3 right: calls of the five nearest neighbours
def few_shot(seen, labels, asked):
    far = ((asked[:, None] - seen[None]) ** 2).sum(axis=2)
    return labels[far.argsort(axis=1)[:, :5]].mean(axis=1) >= 0.5


# %% 3 wrong: both columns
def few_shot(seen, labels, asked):
    return training.linear_head(seen, labels).predict_proba(asked)


# %% 3 wrong: the head of section 3, which has seen all training images
def few_shot(seen, labels, asked):
    return linear.predict_proba(asked)[:, 1]


# %% 3 wrong: standardised by the images that are asked
def few_shot(seen, labels, asked):
    head = training.linear_head(seen, labels)
    return head[-1].predict_proba((asked - asked.mean(axis=0)) / (asked.std(axis=0) + 1e-6))[:, 1]


# %% 3 wrong: a single feature
def few_shot(seen, labels, asked):
    return training.linear_head(seen[:, :1], labels).predict_proba(asked[:, :1])[:, 1]
