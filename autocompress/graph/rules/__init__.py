"""The one table of ATen ops that the channel graph understands: op name without overload -> rule."""

from __future__ import annotations

from autocompress.graph.flow import Rule
from autocompress.graph.rules.elementwise import ELEMENTWISE, FACTORY
from autocompress.graph.rules.layers import ATTENTION, LAYERS, RECURRENT
from autocompress.graph.rules.reduce import REDUCE
from autocompress.graph.rules.shape import SHAPE
from autocompress.graph.rules.spatial import SPATIAL
from autocompress.graph.rules.view import VIEW

RULES: dict[str, Rule] = {
    **ATTENTION,
    **ELEMENTWISE,
    **FACTORY,
    **LAYERS,
    **RECURRENT,
    **REDUCE,
    **SHAPE,
    **SPATIAL,
    **VIEW,
}
