"""The web app: a page and a JSON interface around `utils.classifier`. `make app` or `python -m utils.web` start it.

A request travels `server` (Waitress, in memory alone) -> `app` (Flask) -> `desk` (one thread asks the models) and back.
"""
