"""One file a page, run by ``app.py``; each has ``show()``."""
