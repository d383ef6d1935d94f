"""The upstreams: one module each, which defines its dialect as ``DIALECT``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policies import modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.dialect import Dialect

UPSTREAMS: Final[Mapping[str, Dialect]] = {
    module.DIALECT.id: module.DIALECT for module in modules.of(__name__, __path__)
}
