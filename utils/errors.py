"""The one error that the course raises at a person."""


class CourseError(ValueError):
    """Something that the user can mend: what was expected, what came, what to do.

    Notebooks show its message alone, without a traceback; the command line prints it and exits with 2.
    """

    def _render_traceback_(self):
        # IPython asks an exception for this before it formats a traceback of its own.
        return [f"{type(self).__name__}: {self}"]
