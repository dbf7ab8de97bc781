"""Every figure, one look. Functions return a Matplotlib figure; `show` puts it under the cell with its description."""

import io
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito's colours, told apart by colour-blind readers, in an order that also differs in grey.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6E6E6E"
LIGHT_GREY = "#C8C8C8"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
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

    buffer, small = io.BytesIO(), io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    picture = Image.open(buffer).convert("RGB")
    # Most figures are grey: one byte a pixel is then enough, and notebooks stay small.
    red, green, blue = (np.asarray(band) for band in picture.split())
    is_grey = (red == green).all() and (red == blue).all()
    (picture.convert("L") if is_grey else picture).save(small, format="PNG", optimize=True)
    data = {"image/png": small.getvalue(), "text/plain": f"Figure: {alt}"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def caption(fig, run, text="", *, simulated=False):
    """Write below a figure where its radiographs or scores come from.

    Parameters
    ----------
    fig : matplotlib.figure.Figure
    run : utils.config.Run
    text : str
        What else a reader should know.
    simulated : bool
        The figure shows phantoms whatever the data set of the run.
    """
    simulated = simulated or run.dataset == "phantom"
    source = "Simulated radiographs (phantoms)." if simulated else f"Data: {run.short_dataset}."
    fig.supxlabel(f"{source} {text}", fontsize=8, color=GREY, x=0.01, ha="left")


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


def learning_curves(history):
    """Draw loss and accuracy over epochs, training beside validation.

    Parameters
    ----------
    history : pandas.DataFrame
        From `utils.training.fit`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    fig, axes = figure(1, 2, width=9, height=3.2)
    for ax, name, title in zip(axes, ("loss", "accuracy"), ("Loss (binary cross-entropy)", "Accuracy")):
        ax.plot(history.index, history[name], "o-", ms=3, label="training", color=BLUE)
        ax.plot(history.index, history[f"val_{name}"], "s--", ms=3, label="validation", color=RED)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    best = history["val_loss"].idxmin()
    axes[0].axvline(best, color=GREY, lw=1, ls=":")
    axes[0].annotate(
        "kept", (best, axes[0].get_ylim()[1]), (3, -10), textcoords="offset points", fontsize=8, color=GREY
    )
    axes[0].set_ylim(bottom=0)
    axes[1].legend(loc="lower right")
    return fig


def outline(ax, mask, colour):
    """Draw the border of a mask, bool (height, width), onto an image of the same size."""
    if mask.any():
        ax.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
