"""What can be asked of an upstream, as data: one module for each operation, which names it ``OPERATION``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Operation

OPERATIONS: Final[Mapping[str, Operation]] = {
    module.OPERATION.id: module.OPERATION for module in modules.of(__name__, __path__)
}
