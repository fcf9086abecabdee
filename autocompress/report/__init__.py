"""Shows a run: the front as a page, a table and files. Nothing is recomputed."""
