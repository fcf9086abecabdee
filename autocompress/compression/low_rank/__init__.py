"""Low-rank factors of layers, chosen so that the layers' outputs change least."""

from autocompress.compression.low_rank.merge import merge

__all__ = ["merge"]
