"""The calls, described: what the table of routes in `app.py` has beside each application."""
