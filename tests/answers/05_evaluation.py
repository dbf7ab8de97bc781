"""Other answers to the exercises of notebook 05, right and wrong, on which its checks are tried."""

# %% 1 right: scikit-learn's functions, told which class is meant
from sklearn.metrics import f1_score, precision_score, recall_score


def by_hand(is_it, said):
    return [score(is_it, said, zero_division=np.nan) for score in (precision_score, recall_score, f1_score)]


# %% 1 right: the four cells of a confusion matrix, in plain Python
def by_hand(is_it, said):
    pairs = list(zip(is_it, said))
    true_positive = sum(1 for a, b in pairs if a and b)
    false_positive = sum(1 for a, b in pairs if not a and b)
    false_negative = sum(1 for a, b in pairs if a and not b)
    if not true_positive:
        return 0.0 if true_positive + false_positive else np.nan, 0.0, 0.0
    precision = true_positive / (true_positive + false_positive)
    sensitivity = true_positive / (true_positive + false_negative)
    return precision, sensitivity, 2 / (1 / precision + 1 / sensitivity)


# %% 1 wrong: precision and sensitivity swapped
def by_hand(is_it, said):
    hits = (is_it & said).sum()
    return hits / is_it.sum(), hits / said.sum(), 2 * hits / (is_it.sum() + said.sum())


# %% 1 wrong: the accuracy taken for the precision
def by_hand(is_it, said):
    accuracy, sensitivity = (is_it == said).mean(), said[is_it].mean()
    return accuracy, sensitivity, 2 * accuracy * sensitivity / (accuracy + sensitivity)


# %% 1 wrong: the ordinary mean for F1
def by_hand(is_it, said):
    precision, sensitivity = is_it[said].mean(), said[is_it].mean()
    return precision, sensitivity, (precision + sensitivity) / 2


# %% 2 right: thresholds from scikit-learn's ROC curve
from sklearn.metrics import roc_curve

false_alarms, found, thresholds = roc_curve(sick, risk, drop_intermediate=False)


def cost(threshold, prevalence):
    at = (thresholds >= threshold).sum() - 1
    return prevalence * (1 - found[at]) * 10 + (1 - prevalence) * false_alarms[at]


cheapest = {p: thresholds[np.argmin(10 * p * (1 - found) + (1 - p) * false_alarms)] for p in (0.5, 0.01)}


# %% 2 right: a thousand people counted, and thresholds between two images
def cost(threshold, prevalence):
    ill, well = 1000 * prevalence, 1000 * (1 - prevalence)
    missed = ill * np.count_nonzero(risk[sick] <= threshold) / np.count_nonzero(sick)
    called_wrongly = well * np.count_nonzero(risk[~sick] > threshold) / np.count_nonzero(~sick)
    return (10 * missed + called_wrongly) / 1000


steps = np.unique([-0.01, *risk, 1.01])
middles = (steps[1:] + steps[:-1]) / 2
cheapest = {p: float(middles[np.argmin([cost(one, p) for one in middles])]) for p in (0.5, 0.01)}


# %% 2 wrong: mistakes counted among the validation images, whatever the prevalence
def cost(threshold, prevalence):
    said = risk >= threshold
    return (10 * (sick & ~said).sum() + (~sick & said).sum()) / len(sick)


cheapest = dict.fromkeys((0.5, 0.01), min(np.unique(risk), key=lambda one: cost(one, 0.5)))


# %% 2 wrong: the false alarm costs ten times
def cost(threshold, prevalence):
    said = risk >= threshold
    return prevalence * (~said)[sick].mean() + 10 * (1 - prevalence) * said[~sick].mean()


cheapest = {p: min([*np.unique(risk), 2], key=lambda one: cost(one, p)) for p in (0.5, 0.01)}


# %% 2 wrong: 0.5, since it is always 0.5
def cost(threshold, prevalence):
    said = risk >= threshold
    return 10 * prevalence * (~said)[sick].mean() + (1 - prevalence) * said[~sick].mean()


cheapest = {0.5: 0.5, 0.01: 0.5}

# %% 3 right: the textbook's formula, with 1.96 for the interval and 0.84 for 8 of 10 tests
sick_patients = np.ceil((1.96 + 0.84) ** 2 * 0.95 * 0.05 / (0.95 - 0.90) ** 2)

# %% 3 right: tests simulated, with Wilson's interval
from scipy.stats import binomtest

rng = np.random.default_rng(1)


def often_enough(patients):
    values, counts = np.unique(rng.binomial(patients, 0.95, size=1000), return_counts=True)
    ends = [binomtest(value, patients).proportion_ci(method="wilson").low for value in values.tolist()]
    return counts[np.array(ends) >= 0.90].sum() >= 800


sick_patients = next(patients for patients in range(50, 1000, 10) if often_enough(patients))

# %% 3 wrong: the lower end is 0.90 on average, so half of the tests fail
sick_patients = round(1.96**2 * 0.95 * 0.05 / (0.95 - 0.90) ** 2)

# %% 3 wrong: as many as are tested here
sick_patients = len(set(who[covid == 1]))

# %% 3 wrong: a large number, to be on the safe side
sick_patients = 2000
