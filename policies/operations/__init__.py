"""What can be asked of an upstream, as data: one module an operation, and this table of them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies.operations.invoices_create import INVOICES_CREATE
from policies.operations.invoices_retrieve import INVOICES_RETRIEVE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Operation

OPERATIONS: Final[Mapping[str, Operation]] = {
    operation.id: operation for operation in (INVOICES_CREATE, INVOICES_RETRIEVE)
}
