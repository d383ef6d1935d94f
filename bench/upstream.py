"""The upstream of the benchmark: the sandbox's, which here also accepts JSON.

LiteLLM sends every body on as JSON, which the real upstream refuses; without this it would have no row.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.appgregator import Appgregator
from sandbox.upstream import FORM, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.server import Answer, Head


class Lenient(Appgregator):
    """Accepts what the sandbox accepts, and its parameters as JSON."""

    def _refusal(self, head: Head) -> Answer | None:
        return super()._refusal(replace(head, fields={**head.fields, "content-type": FORM}) if _json(head) else head)

    def _create(self, form: Mapping[str, str], key: str) -> Answer:
        # A form's parser reads a JSON object as one name without a value.
        (first, *_) = form or ("",)
        return super()._create(json.loads(first) if first.startswith("{") else form, key)


def _json(head: Head) -> bool:
    return head.media == "application/json"


if __name__ == "__main__":
    run("bench.upstream", lambda port: Lenient(port=port, keep=0))
