"""Answers to the exercises of notebook 08, on which its checks are tried."""

# %% 1 right: file by file, in plain Python
called = {}
for row in told.to_dict("records"):
    if row["refused"] or row["error"]:
        called[row["file"]] = "no answer"
    else:
        called[row["file"]] = "COVID-19" if float(row["p_COVID-19"]) >= 0.9 else "Normal"

# %% 1 right: a Series by file, from the other class's probability
healthy = pd.to_numeric(told.set_index("file")["p_Normal"], errors="coerce")
called = healthy.map(lambda p: "no answer" if np.isnan(p) else "Normal" if p > 0.1 else "COVID-19")

# %% 1 wrong: a blank is taken for a probability of 0
likely = pd.to_numeric(told["p_COVID-19"], errors="coerce").fillna(0)
called = dict(zip(told["file"], np.where(likely >= 0.9, "COVID-19", "Normal")))

# %% 1 wrong: what was refused is called healthy, only what could not be read is kept apart
likely = pd.to_numeric(told["p_COVID-19"], errors="coerce")
called = dict(zip(told["file"], np.where(likely >= 0.9, "COVID-19", "Normal")))
called |= {name: "no answer" for name in told["file"][told["error"] != ""]}

# %% 1 wrong: files without an answer are dropped
likely = pd.to_numeric(told["p_COVID-19"], errors="coerce")
words = np.select([likely >= 0.9, likely < 0.9], ["COVID-19", "Normal"], "no answer")
called = {name: word for name, word in zip(told["file"], words) if word != "no answer"}

# %% 1 wrong: the probability of the other class
likely = pd.to_numeric(told["p_Normal"], errors="coerce")
words = np.select([likely >= 0.9, likely < 0.9], ["COVID-19", "Normal"], "no answer")
called = dict(zip(told["file"], words))

# %% 2 right: functions of NumPy and OpenCV, one picture at a time
mirrored = np.stack([cv2.flip(one, 1).reshape(one.shape) for one in xrays])
following = [*xrays[1:], xrays[0]]
mixed = np.stack([np.mean([one, other], axis=0).round().astype(np.uint8) for one, other in zip(xrays, following)])
passed = {"mirrored": round(float((far(mirrored) <= 1).mean()), 2), "mixed": round(float((far(mixed) <= 1).mean()), 2)}

# %% 2 right: halves added, so that nothing runs over; those that are refused taken from 1
mirrored = np.flip(xrays, 2)
mixed = xrays // 2 + np.concatenate([xrays[1:], xrays[:1]]) // 2
passed = pd.Series({"mirrored": 1 - np.mean(far(mirrored) > 1), "mixed": 1 - np.mean(far(mixed) > 1)})

# %% 2 wrong: a sum of uint8 runs over
mirrored = xrays[:, :, ::-1]
mixed = (xrays + np.roll(xrays, -1, axis=0)) // 2
passed = {"mirrored": 0.975, "mixed": 0.85}

# %% 2 wrong: the share that is refused
mirrored = xrays[:, :, ::-1]
mixed = ((xrays.astype(int) + np.roll(xrays, -1, axis=0)) // 2).astype(np.uint8)
passed = {"mirrored": np.mean(far(mirrored) > 1), "mixed": np.mean(far(mixed) > 1)}

# %% 2 wrong: rows turned instead of columns
mirrored = xrays[:, ::-1]
mixed = ((xrays.astype(int) + np.roll(xrays, -1, axis=0)) // 2).astype(np.uint8)
passed = {"mirrored": 0.975, "mixed": 0.85}

# %% 2 wrong: the mean of an X-ray and itself, rolled along its rows
mirrored = xrays[:, :, ::-1]
mixed = ((xrays.astype(int) + np.roll(xrays, -1, axis=1)) // 2).astype(np.uint8)
passed = {"mirrored": 0.975, "mixed": 0.85}

# %% 3 right: a test larger than it has to be, by the normal approximation
ill = 150
least = int(np.ceil(ill * 0.8 + 1.75 * np.sqrt(ill * 0.8 * 0.2)))
in_a_row = ill / 0.05

# %% 3 right: played 20,000 times with dice, with room to spare
dice = np.random.default_rng(0)
ill = 120
least = int(np.quantile(dice.binomial(ill, 0.8, 20_000), 0.97)) + 1
in_a_row = np.int64(3000)

# %% 3 wrong: 0.8 in the test taken for 0.8 in truth
ill, in_a_row = 100, 2000
least = int(0.8 * ill)

# %% 3 wrong: as many as lie in a folder: too few to tell
ill, in_a_row = 20, 400
least = 20

# %% 3 wrong: as many healthy as ill, picked by hand
ill, least = 100, 87
in_a_row = 2 * ill

# %% 3 wrong: so many patients that it must be enough
ill, least = 100, 87
in_a_row = 100_000
