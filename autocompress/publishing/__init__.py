"""Writes what leaves a search: compressed models, the front's folders, a runner beside each."""
