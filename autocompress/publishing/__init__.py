"""Writes the results of a search: compressed models, and the folders of the front's points with a runner in each."""
