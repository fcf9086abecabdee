"""Finds out whether this installation and this machine can search: what `autocompress doctor` prints."""
