"""Heat leaves the radiograph visible and has a scale; a map without heat says so."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from utils import config, plots
from utils.metrics import Score


def painted(images, heats, **options):
    """The figure, and what each of its first panels looks like: uint8 (height, width, 3)."""
    fig = plots.grid(images, [""] * len(images), columns=len(images))
    plots.overlay(fig, heats, **options)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    whole = np.asarray(canvas.buffer_rgba())[..., :3]
    boxes = [ax.get_window_extent() for ax in fig.axes[: len(images)]]
    height = len(whole)
    return fig, [whole[int(height - b.y1) + 3 : int(height - b.y0) - 3, int(b.x0) + 3 : int(b.x1) - 3] for b in boxes]


def said(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_the_radiograph_is_seen_under_the_hottest_heat():
    chest = np.zeros((40, 40), np.uint8)
    chest[:, 20:] = 200
    _, (bare, warm) = painted([chest, chest], [None, np.ones((40, 40))])
    contrast = [abs(float(one[:, :30].mean()) - float(one[:, -30:].mean())) for one in (bare, warm)]
    assert contrast[1] > 0.3 * contrast[0] > 0
    assert np.ptp(bare.astype(int), axis=2).max() == 0 and np.ptp(warm.astype(int), axis=2).min() > 20  # grey; coloured


def test_where_there_is_no_heat_the_radiograph_stays_as_it_is():
    chest = np.full((40, 40), 120, np.uint8)
    heat = np.zeros((40, 40))
    heat[:10] = 3.0
    heat[30:] = -5.0  # below zero counts as zero
    _, (panel,) = painted([chest], [heat])
    assert (panel[len(panel) // 2 :] == 120).all() and (panel[: len(panel) // 8] != 120).any(axis=2).all()


def test_a_map_without_heat_says_so_and_the_scale_is_named():
    chest = np.full((40, 40), 120, np.uint8)
    fig, _ = painted([chest] * 3, [np.zeros((40, 40)), np.ones((40, 40)), None])
    assert [said(ax) for ax in fig.axes[:3]] == [["no heat"], [], []]
    assert "hottest" in fig.axes[-1].get_ylabel()


def test_maps_can_share_a_scale():
    chest = np.full((40, 40), 120, np.uint8)
    maps = [np.full((40, 40), 1.0), np.full((40, 40), 4.0)]
    _, (own, _) = painted([chest] * 2, maps)
    fig, (weak, strong) = painted([chest] * 2, maps, together=True)
    assert np.ptp(weak[20, 20].astype(int)) < np.ptp(own[20, 20].astype(int)) and (strong == own).all()
    assert "of all" in fig.axes[-1].get_ylabel()


def test_masks_are_outlined_in_their_own_panel():
    chest, mask = np.full((40, 40), 120, np.uint8), np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    _, (with_mask, without) = painted([chest] * 2, [None, None], masks=[mask, None])
    assert (with_mask != 120).any() and (without == 120).all()


def test_words_stand_on_the_side_of_their_places_and_do_not_overlap():
    places = {f"word {number}": (10 + 60 * (number % 2), 30 + number) for number in range(8)}
    fig = plots.labelled(np.full((100, 100), 120, np.uint8), places)
    FigureCanvasAgg(fig).draw()
    (ax,), boxes = fig.axes, {}
    for text in ax.texts:
        boxes[text.get_text()] = Text.get_window_extent(text)  # without the line
        assert tuple(text.xy) == places[text.get_text()]  # where its line ends
    for name, (x, _) in places.items():
        panel = ax.get_window_extent()
        assert boxes[name].x1 < panel.x0 if x < 50 else boxes[name].x0 > panel.x1
        assert not any(boxes[name].overlaps(box) for other, box in boxes.items() if other != name)


def test_a_dashed_outline_is_told_from_a_solid_one_without_colour():
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    greys = []
    for style in ("solid", "dashed"):
        fig, ax = plots.figure(width=3, height=3)
        plots.radiographs(ax, np.full((40, 40), 120, np.uint8))
        plots.outline(ax, mask, plots.ORANGE, style=style)
        greys.append(np.asarray(Image.open(io.BytesIO(plots.png(fig))).convert("L"), float))
    assert greys[1].min() < 80 < greys[0].min(), "dark gaps between the dashes"


def test_gaps_show_both_scores_of_each_row():
    _, ax = plots.figure()
    rows = {"one": (Score(0.9, 0.8, 1.0, 9), Score(0.6, 0.4, 0.8, 9)), "two": (Score(0.7, 0.6, 0.8, 9),) * 2}
    plots.gaps(ax, rows, names=("seen", "unseen"), label="AUC", line=0.5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["seen", "unseen"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]
    drawn = {tuple(np.round(line.get_xdata(), 3)) for line in ax.lines}
    assert {(0.8, 1.0), (0.4, 0.8), (0.9,), (0.6,), (0.9, 0.6)} <= drawn


def test_a_caption_stays_within_its_figure():
    fig, _ = plots.figure(width=5)
    plots.caption(fig, config.start(), "Something that is said at some length. " * 4 + "Not for diagnosis.")
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    box = fig._supxlabel.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= canvas.get_width_height()[0] and box.y0 >= 0
    assert fig._supxlabel.get_text().startswith("Simulated") and fig._supxlabel.get_text().endswith("diagnosis.")


def test_a_large_figure_in_colour_is_stored_with_a_palette_and_hardly_changes(monkeypatch):
    stored = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: stored.append(data["image/png"]))
    chest = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    fig, _ = painted([chest] * 2, [None, np.add.outer(np.arange(64), np.arange(64))])
    plots.show(fig, alt="heat over noise")
    whole = io.BytesIO()
    fig.savefig(whole, format="png", dpi=100)
    small, picture = Image.open(io.BytesIO(stored[0])), Image.open(whole).convert("RGB")
    assert small.mode == "P" and small.size == picture.size and len(stored[0]) < whole.tell() / 2
    assert np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(picture, float)).mean() < 4


def test_titles_of_two_lines_are_not_cut(monkeypatch):
    stored = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: stored.append(data["image/png"]))
    for columns in (3, 6):
        fig = plots.grid([np.full((40, 40), 120, np.uint8)] * 6, ["hospital A\nNormal"] * 6, columns=columns)
        plots.caption(fig, config.start(), "A caption.")
        plots.show(fig, alt="six grey squares")
        assert (np.asarray(Image.open(io.BytesIO(stored.pop())))[:2] == 255).all()
