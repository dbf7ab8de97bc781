"""The errors that the course raises at a person."""


class CourseError(ValueError):
    """Something that the user can mend: what was expected, what came, what to do.

    Notebooks show its message alone, without a traceback; the command line prints it and exits with 2.
    """

    def _render_traceback_(self):
        # IPython asks an exception for this before it formats a traceback of its own.
        return [f"{type(self).__name__}: {self}"]


class ImageError(CourseError):
    """A file that cannot be used as a radiograph; the message is one line, fit for a list of skipped files."""


def one_line(text):
    """Return the first line of a text, at most 150 letters: what other programs or files say may hold anything."""
    first = (str(text).strip().splitlines() or [""])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in first)[:150]
