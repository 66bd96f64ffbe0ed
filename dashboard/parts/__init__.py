"""Parts of pages, which draw what was read."""
