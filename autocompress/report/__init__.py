"""The front as a page, a table and files: what a reader sees of a run; nothing is recomputed."""
