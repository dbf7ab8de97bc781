"""A bundle accepts frontal chest X-rays like those of its training, from patients it never saw, and little else."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
import pytest
from test_export import lively
from threadpoolctl import threadpool_limits

from utils import backbones, classifier, config, images, models, phantom, refusal
from utils.backend import keras
from utils.errors import CourseError

SIDE = 128


def taken(numbers, *, seed=99, size=SIDE, **options):
    """Radiographs of simulated patients, uint8 (patients, size, size)."""

    def one(number):
        return phantom.take_radiograph(phantom.make_patient(number, seed=seed, **options), 0, size=size).image

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(one, numbers)))


def prepared(pictures, size=SIDE):
    """As `images.preprocess` prepares them: uint8 (images, size, size, 1)."""
    return np.stack([images.preprocess(one, images.Options(size=size)) for one in pictures])


@pytest.fixture(scope="module")
def shipped():
    return classifier.Classifier()


@pytest.fixture(scope="module")
def chests():
    """Twenty patients of each hospital that no bundle was made from."""
    return {name: taken(range(20_000, 20_020), hospital=name, size=224) for name in phantom.HOSPITALS}


def refused(model, pictures):
    """Share of pictures, uint8 (height, width), that are refused."""
    views = [(images.preprocess(one, model.members[0].options),) for one in pictures]
    return np.mean([bool(reason) for reason in model.ask(views)[1]])


# What is no frontal chest X-ray


def documents(rng):
    page = np.full((260, 200), 255, np.uint8)
    for line in range(12):
        text = "".join(chr(letter) for letter in rng.integers(97, 123, 18))
        cv2.putText(page, text, (12, 24 + 19 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0, 1, cv2.LINE_AA)
    return page


def stripes(rng):
    y, x = np.mgrid[:200, :200]
    turn = rng.uniform(0, np.pi)
    return np.uint8(127 + 120 * np.sin((x * np.cos(turn) + y * np.sin(turn)) / rng.uniform(3, 20)))


def noise(rng):
    return rng.integers(0, 256, (200, 200), np.uint8)


def blank(rng):
    return np.full((200, 200), rng.integers(256), np.uint8)


def scene(rng):
    """Stands for a photograph: bright sky, a horizon, discs and boxes with texture."""
    picture = np.linspace(230, 60, 200)[:, None].repeat(260, 1)
    picture[int(rng.integers(80, 150)) :] *= 0.5
    for _ in range(8):
        x, y, r = (int(number) for number in rng.integers((0, 40, 8), (260, 200, 40)))
        cv2.circle(picture, (x, y), r, float(rng.integers(256)), -1)
        cv2.rectangle(picture, (x + r, y - r), (x + 2 * r, y + r), float(rng.integers(256)), -1)
    return np.uint8(np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255))


def slice_of_a_body(rng):
    """Stands for a CT slice: a bright oval with two dark ones in it, on black."""
    picture = np.zeros((200, 200), np.uint8)
    centre, tilt = (100 + int(rng.integers(-8, 9)), 100), float(rng.uniform(-9, 9))
    cv2.ellipse(picture, centre, (88, 62), tilt, 0, 360, 190, -1)
    for side in (-1, 1):
        cv2.ellipse(picture, (centre[0] + side * 40, 95), (28, 40 + int(rng.integers(8))), tilt, 0, 360, 25, -1)
    cv2.circle(picture, (centre[0], 140), 12, 250, -1)
    return cv2.GaussianBlur(picture, (0, 0), 1.5)


DRAWN = {"documents": documents, "stripes": stripes, "noise": noise, "blank": blank, "scenes": scene,
         "slices": slice_of_a_body}  # fmt: skip
TURNED = {"upside down": lambda one: one[::-1], "inverted": lambda one: 255 - one, "on its side": np.rot90}


@pytest.mark.parametrize("hospital", phantom.HOSPITALS)
def test_patients_that_nobody_has_seen_are_accepted(shipped, chests, hospital):
    assert refused(shipped, chests[hospital]) <= 0.05


def test_so_are_patients_of_another_seed(shipped):
    assert refused(shipped, taken(range(40), seed=5, size=224)) <= 0.05


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_no_x_ray_is_refused(shipped, name):
    assert refused(shipped, [DRAWN[name](np.random.default_rng([1, number])) for number in range(40)]) >= 0.95


@pytest.mark.parametrize("name", TURNED)
def test_x_rays_that_stand_or_shine_wrongly_are_refused(shipped, chests, name):
    pictures = [np.ascontiguousarray(TURNED[name](one)) for hospital in chests.values() for one in hospital]
    assert refused(shipped, pictures) >= 0.9


def test_ct_slices_are_refused(shipped, shared):
    table = pd.read_csv(shared / "ieee8023" / "metadata.csv")
    names = table.loc[table["modality"] == "CT", "filename"].unique()
    found = [path for path in (shared / "ieee8023" / "images" / name for name in names) if path.is_file()]
    assert len(found) > 50
    assert refused(shipped, [images.read_grey(path) for path in found]) >= 0.99


# Statistics of one's own


@pytest.fixture(scope="module")
def fitted():
    """A small network, phantoms of 60 patients, two images each, and statistics of them."""
    model = lively(models.small_cnn((32, 32, 1), seed=1, widths=(8, 16)))
    pixels = prepared(taken(range(120), seed=3), size=32)
    return model, pixels, refusal.fit(model, pixels, np.arange(120) // 2, seed=1)


def test_the_limit_lets_most_others_pass_and_stops_other_things(fitted):
    model, _, watch = fitted
    others = prepared(taken(range(1_000, 1_030), seed=3), size=32)
    kinds = (documents, stripes, noise, blank)
    odd = prepared([draw(np.random.default_rng([2, number])) for draw in kinds for number in range(8)], size=32)
    far = refusal.distances(watch, refusal.features_of(model, np.concatenate([others, odd]))) > watch.limit
    assert far[:30].mean() <= 0.15 and far[30:].mean() >= 0.95


@pytest.fixture
def features(monkeypatch):
    """Features of 60 patients, four images each that are much alike; `fit` takes them for pixels."""
    monkeypatch.setattr(refusal, "features_of", lambda model, pixels, rows: pixels[rows])
    monkeypatch.setattr(refusal, "GENERAL", 150)
    rng = np.random.default_rng(1)
    patients = rng.normal(0, 1, (60, 1, 200)) + rng.normal(0, 3, (60, 1, 3)) @ rng.normal(0, 1, (3, 200))
    with threadpool_limits(1):  # arrays this small are slower on several threads, on a busy computer ten times
        yield np.exp(patients + rng.normal(0, 0.1, (60, 4, 200))).reshape(240, 200).astype(np.float32)


PATIENTS = np.arange(240) // 4


def test_the_limit_comes_from_patients_that_were_held_out(features):
    watch = refusal.fit(None, features, PATIENTS, seed=1)
    apart = refusal.fit(None, features, np.arange(240), seed=1)  # as if each image were of another patient
    assert watch.fitted_on == 240 and watch.limit > 1.2 * apart.limit
    assert (refusal.distances(watch, features) < watch.limit).all(), "those it was fitted on lie nearer than others"


def test_the_order_of_images_hardly_matters(features):
    watch, order = refusal.fit(None, features, PATIENTS, seed=1), np.random.default_rng(1).permutation(240)
    other = refusal.fit(None, features[order], PATIENTS[order], seed=1)
    shares = [refusal.distances(one, features) / one.limit for one in (watch, other)]
    np.testing.assert_allclose(shares[1], shares[0], rtol=0.1)


def test_a_lower_share_accepted_is_a_narrower_limit(features):
    wide, narrow = (refusal.fit(None, features, PATIENTS, seed=1, accepted=share).limit for share in (1.0, 0.5))
    assert narrow < 0.97 * wide


def test_the_same_seed_gives_the_same_statistics(features):
    first, second = (refusal.fit(None, features, PATIENTS, seed=1) for _ in range(2))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def test_one_patient_says_nothing_about_others(features):
    with pytest.raises(CourseError, match="needs X-rays of several patients; got 9 images of 1"):
        refusal.fit(None, features[:9], ["a"] * 9, seed=1)
    assert refusal.fit(None, features[:9], list("aaabbbccc"), seed=1).limit > 0


def test_features_come_with_the_answer_of_the_model_itself(fitted):
    model, pixels, _ = fitted
    answer, features = models.compiled(refusal.watched(model))(pixels[:20])
    np.testing.assert_allclose(answer.numpy()[:, 0], models.predict(model, pixels[:20]), atol=1e-6)
    assert features.numpy().min() >= 0 and np.isfinite(features.numpy()).all()
    two = models.ensemble([model, lively(models.small_cnn((32, 32, 1), seed=2, widths=(8, 16)))], [1, 1])
    own = features.shape[1] - refusal.watched(two).output_shape[1][1]
    assert own == -16, "of an ensemble, what each member's last layer sees"


def test_other_heads_on_the_same_backbones_have_the_same_features():
    """So notebook 04 fits the statistics once for a head on two backbones, for another, and for a vote of both."""
    pixels = prepared(taken(range(6), seed=3), size=32)
    nets = [lively(models.small_cnn((32, 32, 1), seed=seed, widths=(8, 16))) for seed in (1, 2)]
    own = [keras.Model(net.input, net.get_layer("average").output, name=f"own{n}") for n, net in enumerate(nets)]
    two, three = (backbones.classifier(backbones.join(own), classes=n, seed=n) for n in (2, 3))
    vote = models.ensemble([backbones.classifier(one, classes=3, seed=4) for one in own], [1, 2])
    first, *others = (refusal.features_of(model, pixels) for model in (two, three, vote))
    for one in others:
        np.testing.assert_allclose(one, first, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_is_refused(shipped):
    (member,), view = shipped.members, images.preprocess(taken([20_000], size=224)[0], shipped.members[0].options)
    several = classifier.Classifier.__new__(classifier.Classifier)
    assert shipped.ask([(view,)])[1] == [""]

    def broken(pixels):
        answer, features = member.step(pixels)
        return answer, features * np.float32(np.nan)

    several.members = [member._replace(step=broken)]
    assert several.ask([(view,)])[1][0].startswith("no frontal chest X-ray")


# Files


@pytest.fixture
def folder(fitted, tmp_path):
    """A bundle's statistics as a file."""
    np.savez_compressed(tmp_path / "refusal.npz", **fitted[2]._asdict())
    return tmp_path


def test_statistics_survive_their_file(fitted, folder):
    for one, other in zip(fitted[2], refusal.load(folder)):
        np.testing.assert_array_equal(one, other)


def test_a_bundle_without_statistics_is_not_opened(tmp_path):
    with pytest.raises(CourseError, match=r"has no refusal\.npz: its model could not refuse .*Run the notebook"):
        refusal.load(tmp_path)


def test_a_damaged_file_is_said_and_never_a_crash(folder):
    path, rng = folder / "refusal.npz", np.random.default_rng(1)
    whole, seen = path.read_bytes(), 0
    for trial in range(200):
        data = bytearray(whole)
        if trial % 4 == 0:
            del data[int(rng.integers(len(data))) :]
        else:  # most of a zip's own words stand at its end
            for place in rng.integers(max(0, len(data) - 900) if trial % 2 else 0, len(data), 3):
                data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            refusal.load(folder)
        except CourseError as error:
            assert "refusal.npz" in str(error)
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("change, message", [
    ({"limit": np.array(np.nan)}, "is damaged"), ({"limit": np.array(-1.0)}, "is damaged"),
    ({"mean": np.zeros(3, np.float32)}, "is damaged"), ({"scale": None}, "is damaged"),
    ({"phantom_net": np.array("0" * 64)}, "other weights of PhantomNet than this course has"),
])  # fmt: skip
def test_statistics_that_cannot_be_are_refused(fitted, folder, change, message):
    arrays = {**fitted[2]._asdict(), **change}
    np.savez(folder / "refusal.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(CourseError, match=message):
        refusal.load(folder)


def test_the_shipped_bundle_is_whole():
    assert {path.name for path in config.SHIPPED.iterdir()} == {"card.json", "model.keras", "refusal.npz"}
    assert sum(path.stat().st_size for path in config.SHIPPED.iterdir()) < 3_000_000
    watch = refusal.load(config.SHIPPED)
    assert 0.1 < watch.limit < 10 and watch.fitted_on > 1_000
