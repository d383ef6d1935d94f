"""The operations of the upstreams, as data: one module each, which defines ``OPERATION``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Operation

OPERATIONS: Final[Mapping[str, Operation]] = {
    module.OPERATION.id: module.OPERATION for module in modules.of(__name__, __path__)
}
