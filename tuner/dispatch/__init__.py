"""The executors: where attempts run."""

from __future__ import annotations

import logging

# Before Ray is imported, which in a notebook asks for ipywidgets: nothing of ours needs them.
logging.getLogger("ray.widgets").setLevel(logging.WARNING)
