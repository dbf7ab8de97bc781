"""COVID-19 and other pneumonias of adults (ieee8023) together with children's chest X-rays (Kermany).

The combination of many papers of 2020, and of their mistakes: nearly all normal images show children, and
every COVID-19 image an adult or an image from a publication.
"""

from utils.sources import _selection, ieee8023, kermany


def find(run):
    """Return the folders of the two sets, or raise a CourseError for the one that is missing."""
    return ieee8023.find(run), kermany.find(run)


def read(run):
    """Return the Selection of both sets; paths are relative to the folder that they have in common."""
    adults, children = find(run)
    return _selection.join([ieee8023.select(adults), kermany.select(children)])
