"""Runs a search: the loop, Ray Tune, workers, trials, sensitivities."""
