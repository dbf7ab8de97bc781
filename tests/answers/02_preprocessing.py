"""Answers to the exercises of notebook 02 on which its checks are tried, after its own."""

# ruff: noqa: F811 (each part defines its answer anew)

# %% 1 right: a judge of one's own, and 32-bit numbers
mine = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000))
mine.fit(pictures[learn].astype("float32"), known[learn])
as_trained = list(mine.predict(pictures[held].astype("float32")))
as_served = list(mine.predict(pictures[held].astype("float32") / np.float32(255)))

# %% 1 right: image by image
judge.fit(pictures[learn], known[learn])
as_trained = pd.Series([judge.predict(picture[None])[0] for picture in pictures[held]])
as_served = pd.Series([judge.predict(picture[None] * (1 / 255))[0] for picture in pictures[held]])

# %% 1 wrong: fits again for the page, on divided images
as_trained = judge.fit(pictures[learn], known[learn]).predict(pictures[held])
as_served = judge.fit(pictures[learn] / 255, known[learn]).predict(pictures[held] / 255)

# %% 1 wrong: predicts the images it has learned from
judge.fit(pictures[learn], known[learn])
as_trained, as_served = judge.predict(pictures[learn]), judge.predict(pictures[learn] / 255)

# %% 1 wrong: divides for the training, not for the page
judge.fit(pictures[learn] / 255, known[learn])
as_trained, as_served = judge.predict(pictures[held] / 255), judge.predict(pictures[held])

# %% 1 wrong: has learned from the held-out images as well
judge.fit(pictures, known)
as_trained, as_served = judge.predict(pictures[held]), judge.predict(pictures[held] / 255)


# %% 2 right: scikit-learn's nearest neighbours, which leave out the image itself
def recognised(pixels, patient):
    flat = pixels.reshape(len(pixels), -1).astype(float)
    near = KNeighborsClassifier(1).fit(flat, np.arange(len(flat))).kneighbors(n_neighbors=1, return_distance=False)
    return float((np.array(patient)[near[:, 0]] == np.array(patient)).sum() / len(flat))


# %% 2 right: a loop over the images, squares of differences
def recognised(pixels, patient):
    hits, values = 0, pixels.astype("float32")
    for row in range(len(values)):
        far = ((values - values[row]) ** 2).sum(axis=(1, 2))
        far[row] = far.max() + 1
        hits += int(patient[int(far.argmin())] == patient[row])
    return round(hits / len(values), 3)


# %% 2 wrong: each image finds itself
def recognised(pixels, patient):
    distances = pairwise_distances(pixels.reshape(len(pixels), -1).astype(float))
    return np.mean(patient[distances.argmin(axis=1)] == patient)


# %% 2 wrong: differences of bytes, which overflow
def recognised(pixels, patient):
    distances = ((pixels[:, None] - pixels[None]) ** 2).sum(axis=(2, 3)).astype(float)
    np.fill_diagonal(distances, np.inf)
    return np.mean(patient[distances.argmin(axis=1)] == patient)


# %% 2 wrong: the number of images, not the share
def recognised(pixels, patient):
    distances = pairwise_distances(pixels.reshape(len(pixels), -1).astype(float))
    np.fill_diagonal(distances, np.inf)
    return np.sum(patient[distances.argmin(axis=1)] == patient)


# %% 2 wrong: the farthest image
def recognised(pixels, patient):
    distances = pairwise_distances(pixels.reshape(len(pixels), -1).astype(float))
    return np.mean(patient[distances.argmax(axis=1)] == patient)


# %% 3 right: no choice of pixels at all, a linear classifier on all of them
def repaired(pixels, toss, folds):
    return cross_val_predict(make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000)), pixels, toss, cv=folds)


# %% 3 right: looks at brightness alone, pixel by pixel, by correlation, and asks the nearest neighbour
def repaired(pixels, toss, folds):
    said = [None] * len(toss)
    for learn, held in folds:
        signs = 2 * toss[learn] - 1
        weight = np.abs(signs @ (pixels[learn] - pixels[learn].mean(axis=0)))
        best = np.argsort(weight)[-50:]
        model = KNeighborsClassifier(1).fit(pixels[learn][:, best], toss[learn])
        for row, answer in zip(held, model.predict(pixels[held][:, best])):
            said[row] = int(answer)
    return said


# %% 3 wrong: the colleague's own recipe
repaired = colleague


# %% 3 wrong: chooses the pixels in each fold, but of all patients
def repaired(pixels, toss, folds):
    guess = np.zeros_like(toss)
    for learn, held in folds:
        best = best_pixels(pixels, toss)
        guess[held] = NearestCentroid().fit(pixels[learn][:, best], toss[learn]).predict(pixels[held][:, best])
    return guess


# %% 3 wrong: learns from the patients that it predicts
def repaired(pixels, toss, folds):
    best = best_pixels(pixels, toss)
    return NearestCentroid().fit(pixels[:, best], toss).predict(pixels[:, best])


# %% 3 wrong: has stopped to learn
def repaired(pixels, toss, folds):
    return np.zeros_like(toss)
