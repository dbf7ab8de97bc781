"""A student's notebook: which one must run before it, and what happens when its parameters are changed on the way."""

import ast
import sys

from utils.errors import CourseError


def first(name, *numbers):
    """Return the sentence that sends a student to an earlier notebook.

    Parameters
    ----------
    name : str
        The notebook, as its file is called, without ".ipynb".
    numbers : str
        What to run on Colab, "01" for instance.
    """
    text = f"Run notebook {name} first, with the same parameters."
    if "google.colab" not in sys.modules:
        return text
    return (
        f"{text} On Colab each notebook has a computer of its own, so run it on this one: put "
        f"`!cd .. && python -m utils.course run {' '.join(numbers)}` into a cell, "
        "with --dataset, --profile and --seed where yours are others; then run this notebook from the top."
    )


def hold(values):
    """Run no more cells once the parameters are others than those that the notebook was started with.

    What the notebook holds by then (tables, pixels, models) belongs to the first values; with a cell from the middle it
    would go into results and bundles of the others. Outside of notebooks this does nothing.

    Parameters
    ----------
    values : dict
        Name of a parameter to its value; kept when the notebook's own variables say the same.
    """
    shell = _shell()
    if shell is None or any(shell.user_ns.get(name) != value for name, value in values.items()):
        return
    guards = [one for one in shell.ast_transformers if type(one).__name__ != _Guard.__name__]
    shell.ast_transformers[:] = [*guards, _Guard(values, shell.user_ns)]


def _shell():
    ipython = sys.modules.get("IPython")  # where nobody has imported it, no notebook is open
    return ipython and ipython.get_ipython()


class _Guard:
    """IPython shows each cell to its `ast_transformers`; one that raises InputRejected keeps the cell from running."""

    def __init__(self, values, variables):
        self.values, self.variables = values, variables

    def visit(self, cell):
        changed = [name for name, value in self.values.items() if self.variables.get(name) != value]
        if changed and not self._sets_them(cell):
            raise _rejected(changed[0], self.values[changed[0]], self.variables.get(changed[0]))
        return cell

    def _sets_them(self, cell):
        stored = {node.id for node in ast.walk(cell) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        return bool(stored & set(self.values))


def _rejected(name, before, now):
    from IPython.core.error import InputRejected

    class ParameterChanged(CourseError, InputRejected):
        pass

    return ParameterChanged(
        f"{name} is now {now!r}, but this notebook was started with {before!r}, and all that it holds belongs to that. "
        "Restart the kernel and run all cells from the top (in the menu: Kernel, or Runtime on Colab). "
        f"To go on as before, set {name} back and run its cell."
    )
