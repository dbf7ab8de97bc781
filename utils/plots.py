"""Every figure, one look. Functions return a Matplotlib figure; `show` puts it under the cell with its description."""

import io
import itertools
import textwrap

import matplotlib
import matplotlib.patheffects
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito's colours, told apart by colour-blind readers, in an order that also differs in grey.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6E6E6E"
LIGHT_GREY = "#C8C8C8"
LARGE = 20_000  # bytes of a stored figure
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
MARKERS = "osD^vP"  # one for each colour: who sees grey tells them apart, too
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
    "legend.frameon": False,
}
matplotlib.rcParams.update(STYLE)


def colours(values):
    """Give each value a colour of its own, "not recorded" grey.

    Parameters
    ----------
    values : iterable of str

    Returns
    -------
    dict
        Value to colour; beyond six the colours come again, lighter, beyond twelve once more.
    """
    lighter = [matplotlib.colors.to_hex(0.45 + 0.55 * np.array(matplotlib.colors.to_rgb(colour))) for colour in CYCLE]
    palette = itertools.cycle([*CYCLE, *lighter])
    return {value: LIGHT_GREY if value == "not recorded" else next(palette) for value in values}


def figure(rows=1, columns=1, *, width=8.0, height=3.0, **options):
    """Make a figure in the course's look.

    Parameters
    ----------
    rows, columns : int
    width, height : float
        Of the whole figure, in inches.
    **options
        Passed to `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    fig : matplotlib.figure.Figure
    axes : matplotlib.axes.Axes or numpy.ndarray of these
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **options)


def show(fig, *, alt):
    """Show a figure under the cell, with its alternative text.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    alt : str
        What a reader who cannot see the figure should know. Keep trained numbers out of it: it is compared.
    """
    from IPython.display import display

    data = {"image/png": png(fig), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def png(fig, *, colours=256):
    """Return a figure as the bytes of a PNG file, small.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    colours : int
        At most so many in a large figure that is not all grey.

    Returns
    -------
    bytes
    """
    buffer, small = io.BytesIO(), io.BytesIO()
    fig.draw_without_rendering()  # the layout settles at the second drawing: titles were cut at the first
    fig.savefig(buffer, format="png", dpi=100)
    picture = Image.open(buffer).convert("RGB")
    # Most figures are grey: one byte a pixel is then enough, and notebooks stay small.
    red, green, blue = (np.asarray(band) for band in picture.split())
    is_grey = (red == green).all() and (red == blue).all()
    if is_grey:
        picture = picture.convert("L")
    elif buffer.tell() > LARGE:  # heat over radiographs: so is a palette
        picture = picture.quantize(colours, kmeans=3, dither=Image.Dither.NONE)
    picture.save(small, format="PNG", optimize=True)
    return small.getvalue()


def caption(fig, run, text="", *, simulated=False):
    """Write below a figure where its radiographs or scores come from.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    run : utils.config.Run or None
        None: the text says where they come from.
    text : str
        What else a reader should know.
    simulated : bool
        The figure shows phantoms whatever the data set of the run.
    """
    source = ""
    if run is not None:
        simulated = simulated or run.dataset == "phantom"
        source = "Simulated radiographs (phantoms)." if simulated else f"Data: {run.short_dataset}."
    lines = textwrap.fill(
        f"{source} {text}".strip(), int(16 * fig.get_figwidth())
    )  # 16 letters of this size to an inch
    fig.supxlabel(lines, fontsize=8, color=GREY, x=0.01, ha="left")


def radiographs(ax, pixels, title=""):
    """Draw one grey image, (height, width) or (height, width, 1), with fixed grey limits and no axes."""
    ax.imshow(np.squeeze(pixels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=9, fontweight="normal", loc="center")
    ax.set_axis_off()


def grid(images, titles, *, columns, side=1.6, row_labels=()):
    """Draw images in rows.

    Parameters
    ----------
    images : sequence of numpy.ndarray or None
        uint8, (height, width) or (height, width, 1); None leaves the place empty.
    titles : sequence of str
        One an image, "" for none.
    columns : int
    side : float
        Inches an image.
    row_labels : sequence of str
        What stands at the left of each row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = -(-len(images) // columns)
    fig, axes = figure(rows, columns, width=side * columns + 0.2, height=side * rows * 1.12 + 0.3, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles):
        if image is not None:
            radiographs(ax, image, title)
    for ax, label in zip(axes[:, 0], row_labels):
        ax.text(-0.06, 0.5, label, transform=ax.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    return fig


def labelled(image, places):
    """Draw one radiograph with words in the margins and a line from each to its place.

    Parameters
    ----------
    image : numpy.ndarray
        uint8, (height, width).
    places : dict
        Word to (x, y) in pixels. What lies in the left half of the picture is named at the left.

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, ax = figure(width=8, height=4.6)
    radiographs(ax, image)
    pale = [matplotlib.patheffects.withStroke(linewidth=3, foreground="white")]  # to be seen on dark lungs as well
    for side, edge in (("right", -0.04), ("left", 1.04)):
        words = [word for word, (x, _) in places.items() if (x < image.shape[1] / 2) == (side == "right")]
        for row, word in enumerate(sorted(words, key=lambda word: places[word][1])):
            line = {"arrowstyle": "-", "lw": 1, "path_effects": pale, "shrinkA": 2, "shrinkB": 0}
            at = (edge, 1 - (row + 0.5) / len(words))
            ax.annotate(word, places[word], at, textcoords="axes fraction", ha=side, va="center", arrowprops=line)
            ax.plot(*places[word], "o", ms=5, mfc="white", mec="black")
    return fig


def overlay(fig, heats, *, masks=(), together=False):
    """Lay heat over the radiographs of a `grid`, so that they stay visible, with a scale.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
        From `grid`.
    heats : sequence of numpy.ndarray or None
        Numbers, (height, width), one an image of the grid; below zero counts as zero. None leaves the radiograph bare.
    masks : sequence of numpy.ndarray or None
        bool, (height, width): drawn as outlines.
    together : bool
        One scale for all, for maps of one network and one class; False: each image has its own.
    """
    warm = [np.max(heat) for heat in heats if heat is not None]
    # From nothing to two thirds covered: a radiologist has to see what lies below.
    ramp = matplotlib.colors.LinearSegmentedColormap.from_list("heat", [(*matplotlib.colors.to_rgb(ORANGE), 0.0),
        (*matplotlib.colors.to_rgb(ORANGE), 0.3), (*matplotlib.colors.to_rgb(RED), 0.65)])  # fmt: skip
    for ax, heat in zip(fig.axes, heats):
        if heat is not None and np.max(heat) > 0:
            top = max(warm) if together else np.max(heat)
            ax.imshow(np.clip(heat, 0, None) / top, cmap=ramp, vmin=0, vmax=1, interpolation="bilinear")
        elif heat is not None:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            ax.text(0.5, 0.04, "no heat", transform=ax.transAxes, ha="center", fontsize=8, bbox=box)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), ramp)
    for ax, mask in zip(fig.axes, masks):
        if mask is not None:
            outline(ax, mask, BLUE)
    bar = fig.colorbar(scale, ax=fig.axes, fraction=0.02, pad=0.01, ticks=[0, 0.5, 1])
    bar.ax.set_facecolor(GREY)  # as it looks over the middle tones of a radiograph
    whose = "hottest place of all" if together else "image's hottest place"
    bar.set_label(f"heat, share of the\n{whose}", fontsize=8)


def intervals(ax, scores, *, label, line=None, line_label="chance"):
    """Draw scores with their 95 % intervals as dots on lines, the first on top.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    scores : dict of utils.metrics.Score
    label : str
        What the horizontal axis shows.
    line : float, optional
        Where a dashed line is drawn, for instance where guessing lies.
    line_label : str
        What is written at the line.
    """
    for row, score in enumerate(reversed(scores.values())):
        ax.plot([score.lo, score.hi], [row, row], color=BLUE, lw=2, solid_capstyle="round")
        ax.plot(score.value, row, "o", color=BLUE, ms=7)
        ax.annotate(
            f"{score.value:.3f}",
            (score.value, row),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    if line is not None:
        ax.axvline(line, color=GREY, ls="--", lw=1)
        ax.annotate(line_label, (line, len(scores) - 0.45), (3, 0), textcoords="offset points", fontsize=8, color=GREY)
    ax.set_yticks(range(len(scores)), list(reversed(scores)))
    ax.set_ylim(-0.6, len(scores) - 0.3)
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)


def gaps(ax, scores, *, names, label, line):
    """Draw two scores a row with their 95 % intervals, and the gap between them.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    scores : dict
        What a row is called: two `utils.metrics.Score`, the better known one first.
    names : tuple of str
        What the first and the second scores are.
    label : str
        What the horizontal axis shows.
    line : float
        Where a dashed line is drawn: guessing.
    """
    for row, both in enumerate(scores.values()):
        ax.plot([one.value for one in both], [row, row], color=LIGHT_GREY, lw=2, zorder=0)
        for one, name, colour, mark, shift in zip(both, names, (BLUE, RED), "os", (-0.12, 0.12)):
            ax.plot([one.lo, one.hi], [row + shift] * 2, color=colour, lw=1)
            fill = {"o": colour, "s": "white"}[mark]  # told apart in grey as well
            ax.plot(one.value, row + shift, mark, color=colour, mfc=fill, ms=5, label=None if row else name)
    ax.set_yticks(range(len(scores)), list(scores), fontsize=8)
    ax.axvline(line, color=GREY, ls="--", lw=1)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def learning_curves(histories):
    """Draw the loss over epochs, training beside validation, one panel a training.

    Parameters
    ----------
    histories : dict of pandas.DataFrame
        From `utils.training.fit` with validation data, by title.

    Returns
    -------
    matplotlib.figure.Figure
        A dotted line marks the epoch with the lowest validation loss.
    """
    fig, axes = figure(1, len(histories), width=4.6 * len(histories), height=3.2, squeeze=False, sharey=True)
    for ax, (title, history) in zip(axes[0], histories.items()):
        ax.plot(history.index, history["loss"], "o-", ms=3, label="training", color=BLUE)
        ax.plot(history.index, history["val_loss"], "s--", ms=3, label="validation", color=RED)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.axvline(history["val_loss"].idxmin(), color=GREY, lw=1, ls=":")
    axes[0, 0].set_ylabel("loss (cross-entropy)")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, -1].legend(loc="upper right")
    return fig


def network(layers, *, title):
    """Draw a network from left to right as boxes, with what each costs.

    Parameters
    ----------
    layers : pandas.DataFrame
        From `utils.models.layer_table`. Drawn are the image, convolutions, the average over the image and dense
        layers; those called `..._small` and `..._large` stand one above the other, as branches.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Heights follow the square root of the side in pixels, widths the number of maps.
    """
    colour = {"image": LIGHT_GREY, "convolution": BLUE, "separable": ORANGE, "dense": GREEN}
    drawn = layers[layers["kind"].str.split().str[-1].isin(colour)]
    places, column = [], -1.0
    for name, row in drawn.iterrows():
        column += not name.endswith("_large")
        level = 1.2 * (name.endswith("_small") - name.endswith("_large"))
        width = max(0.06, 0.75 * row["maps"] / drawn["maps"].max())
        places.append((column * 1.5, level, width, max(0.1, 1.5 * (row["height"] / layers["height"].max()) ** 0.5)))
    branched = any(y for _, y, *_ in places)
    fig, ax = figure(width=11, height=4.6 if branched else 3)
    for (x, y, width, height), (name, row) in zip(places, drawn.iterrows()):
        fill = colour[row["kind"].split()[-1]]
        ax.add_patch(matplotlib.patches.Rectangle((x - width / 2, y - height / 2), width, height, fc=fill, ec="black"))
        cost = f"{row['parameters']:,} parameters\n{row['flops'] / 1e6:.1f} M FLOPs" if row["parameters"] else ""
        size = f"{row['height']} × {row['width']} × {row['maps']}"
        below = y - (0.5 if y else 0.9 if not branched else 1.75)
        ax.text(x, below, name, ha="center", va="top", fontsize=9, fontweight="bold")
        ax.text(x, below - 0.15, f"{row['kind']}\n{size}\n{cost}", ha="center", va="top", fontsize=8)
    _connect(ax, places)
    ax.set(xlim=(-0.7, places[-1][0] + 0.7), ylim=(-2.5 if branched else -1.6, 1.8 if branched else 0.85))
    ax.set_axis_off()
    total = layers[["parameters", "flops"]].sum()
    ax.set_title(f"{title}: {total['parameters']:,} parameters, {total['flops'] / 1e6:.0f} million FLOPs an image")
    return fig


def _connect(ax, places):
    # From each box to a common upright line, and from there to each box of the next column.
    columns = [list(boxes) for _, boxes in itertools.groupby(places, key=lambda place: place[0])]
    for here, following in itertools.pairwise(columns):
        middle = (here[0][0] + following[0][0]) / 2
        levels = [y for _, y, *_ in here + following]
        ax.plot([middle, middle], [min(levels), max(levels)], color="black", lw=1)
        for x, y, width, _ in here:
            ax.plot([x + width / 2, middle], [y, y], color="black", lw=1)
        for x, y, width, _ in following:
            ax.plot([middle, x - width / 2 - 0.05], [y, y], color="black", lw=1)
            ax.plot(x - width / 2 - 0.05, y, marker=">", color="black", ms=5, mew=0)


def outline(ax, mask, colour, *, style="solid"):
    """Draw the border of a mask, bool (height, width), onto an image of the same size."""
    if mask.any():  # with a pale edge, to be seen on dark lungs as well; between dashes a dark one, to be seen in grey
        edge = "white" if style == "solid" else "black"
        ax.contour(mask, levels=[0.5], colors=[edge], linewidths=2.0, alpha=0.6)
        ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=style)
