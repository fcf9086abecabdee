"""Layers split into thinner ones so that their outputs change least."""

from autocompress.compression.low_rank.merge import merge

__all__ = ["merge"]
