"""The course as a static site: `make site` or `python -m utils.site` build it, `conf.py` says how it looks."""
