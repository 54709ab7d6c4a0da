"""Which families the other libraries quantize under this transformers, and why not a model at hand: by the library's name and the family's.

AutoAWQ and AutoGPTQ have a class for each family, written for the modules of transformers 4. transformers 5 holds a block's experts as
one tensor, and puts the language part of a model that reads images elsewhere: there these classes find nothing to quantize.
"""

from __future__ import annotations

from collections.abc import Collection

from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError


def check_family(library: str, source: OpenedModel, known: Collection[str]) -> None:
    """See that `library`, which has classes for the model types `known`, quantizes this model.

    Raises:
        UserError: it does not, and why.
    """
    kind = source.config["model_type"]
    if kind not in known:
        raise UserError(f"{library} does not know the model type {kind!r}, which qlab quantizes")
    check_experts(library, source)
    if source.layout.towers:
        raise UserError(
            f"{library} knows {kind} as transformers 4 laid it out; transformers 5 has its decoder blocks in {source.layout.blocks}, where "
            f"{library} does not look"
        )


def check_experts(library: str, source: OpenedModel) -> None:
    """See that no experts lie in fused tensors, of which `library` would quantize none.

    Raises:
        UserError: they do.
    """
    if source.layout.pieces:
        raise UserError(
            f"{library} quantizes linear layers, and transformers 5 holds the experts of {source.config['model_type']} in tensors of three "
            "dimensions, which it leaves as they are; qlab takes each expert for itself"
        )
