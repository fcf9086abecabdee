"""Labels the ranks of a search space at which a device's profile shows a layer to be no faster than whole."""

from __future__ import annotations

from autocompress.latency.model import LatencyModel
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, SearchSpace


def label_slower_ranks(space: SearchSpace, profile: LatencyModel) -> SearchSpace:
    """The same space, each rank labelled size-only that, asked of its layer alone, is not predicted to save time.

    The comparison is with the prediction for the uncompressed model, not with 1: an error that both have cancels.
    A layer's time at a rank that was not measured is only an estimate by size and shows nothing: it gets no label.

    Args:
        space: of the profiled model.
        profile: of the target device.
    """
    whole = [Candidate()]
    dense, n_outside = profile.ratios(whole)[0], profile.n_outside(whole)[0]

    def is_slower(path: str, choice: Choice) -> bool:
        alone = [space.candidate({f"rank_ratio:{path}": choice})]
        return bool(profile.n_outside(alone)[0] <= n_outside and profile.ratios(alone)[0] >= dense)

    return space.label_size_only(is_slower)
