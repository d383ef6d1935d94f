"""What a line of the record holds, as types: one for each kind. ``docs/record.schema.json`` is made from them.

They describe what :mod:`gateway.record` and :mod:`gateway.chain` write; a test holds every line to them. Values of a
call's parameters are in ``values`` alone, and only those that the policy lists under ``record``.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.presented import PREFIXES
from policies.foresight import Would
from policies.issuing import Stage
from policies.model import Outcome

Short = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Keyed = Annotated[str, Meta(pattern="^[0-9a-f]{24}$", description="A keyed digest: equal values of one instance.")]
Whole = Annotated[int, Meta(ge=0)]
Minor = Annotated[int, Meta(ge=0, description="An amount in minor units of `currency`.")]
Currency = Annotated[str, Meta(pattern="^[a-z]{3}$")]

Detail = Annotated[str | UnsetType, Meta(description="The sentence that the caller got.")]
Note = Annotated[str | UnsetType, Meta(description="For the operator alone.")]
First = Annotated[str | UnsetType, Meta(description="The first parameter that is wrong.")]
Others = Annotated[list[str] | UnsetType, Meta(description="Sentences about all else that is wrong.")]
Code = Annotated[str | UnsetType, Meta(description="The upstream's own code.")]
Seconds = Annotated[int | UnsetType, Meta(description="Seconds until another try may help.")]


class Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every line holds: its place in its instance's chain."""

    instance: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    sequence: Whole
    prev: Annotated[Digest, Meta(description="The hash of the line before it.")]
    time: Annotated[str, Meta(description="RFC 3339, UTC, with microseconds.")]
    hash: Digest
    audit_id: Annotated[str, Meta(pattern="^[0-9a-f]{12}-[0-9a-f]{24}$")]


class Granted(Line, kw_only=True):
    """What every line of a call holds that the policy granted."""

    caller: str
    credential: Annotated[str, Meta(description="A key's id, `google:EMAIL`, or `webhook:` and where its secret is.")]
    connection: str
    operation: str
    policy: Annotated[Short, Meta(description="The first digits of the digest of the document that decided.")]
    parameters: Annotated[dict[str, Keyed], Meta(description="What is sent, by name.")]
    values: Annotated[
        dict[str, str] | UnsetType, Meta(description="Of the parameters that the grant lists under `record`.")
    ] = UNSET
    ledger: Annotated[
        Short | UnsetType, Meta(description="The ledger's name of the idempotency key: joins all its calls.")
    ] = UNSET
    secret: Annotated[str | UnsetType, Meta(description="The version of the upstream's key.")] = UNSET


class Start(Line, kw_only=True, tag="start"):
    """An instance handles its first call."""

    policy: Annotated[str, Meta(description="The digest of the document in force.")]


class Stop(Line, kw_only=True, tag="stop"):
    """An instance stops in an orderly way."""


class Intent(Granted, kw_only=True, tag="intent"):
    """A call is about to be sent."""

    owner: Annotated[str, Meta(description="The beginning of the token with which it claimed its key.")]


class StepLine(Granted, kw_only=True, tag="step"):
    """What came of one step of a call in several."""

    intent: Annotated[str, Meta(pattern="^[0-9a-f]{24}$", description="The end of the audit id, as its intent has it.")]
    step: Literal[tuple(stage.value for stage in Stage)]  # type: ignore[valid-type]  # msgspec reads it
    result: Literal[tuple(outcome.value for outcome in Outcome)]  # type: ignore[valid-type]  # the same
    attempts: Whole
    created: Annotated[str | UnsetType, Meta(description="The id of what is worked on.")] = UNSET
    upstream_status: int | UnsetType = UNSET
    upstream_request: Annotated[str | UnsetType, Meta(description="The upstream's own name for the request.")] = UNSET


class Spent(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A budget that has no room for a call."""

    amount: Minor
    currency: Currency
    window: Annotated[int, Meta(description="Seconds.")]
    left: Minor
    asked: Annotated[Minor, Meta(description="What the call may come to.")]
    each: Annotated[str | UnsetType, Meta(description="Whose budget it is, if each has one.")] = UNSET


class OutcomeLine(Granted, kw_only=True, tag="outcome"):
    """What became of a call that was sent."""

    intent: Annotated[str, Meta(pattern="^[0-9a-f]{24}$", description="The end of the audit id, as its intent has it.")]
    result: Literal[tuple(outcome.value for outcome in Outcome)]  # type: ignore[valid-type]  # msgspec reads it
    status: Annotated[int, Meta(description="What the caller was answered with.")]
    reason: str | UnsetType = UNSET
    detail: Detail = UNSET
    note: Note = UNSET
    parameter: First = UNSET
    others: Others = UNSET
    upstream_code: Code = UNSET
    retry_after: Seconds = UNSET
    attempts: Whole
    milliseconds: Annotated[Whole, Meta(description="From the first byte of the call to here.")]
    upstream_status: int | UnsetType = UNSET
    upstream_request: Annotated[str | UnsetType, Meta(description="The upstream's own name for the request.")] = UNSET
    created: Annotated[str | UnsetType, Meta(description="The id of what was created or changed.")] = UNSET
    amount: Minor | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    warning: Annotated[str | UnsetType, Meta(description="What is not as it might be, though it went through.")] = UNSET
    alarm: Annotated[str | UnsetType, Meta(description="What somebody must look at.")] = UNSET
    budget: Annotated[Spent | UnsetType, Meta(description="The budget that has no room for it.")] = UNSET


class Presented(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What can be said of a refused credential."""

    kind: Literal["none", "unreadable", "key", "token", "webhook"]
    header: str | UnsetType = UNSET
    digest: Keyed | UnsetType = UNSET
    prefix: Literal[PREFIXES] | UnsetType = UNSET  # type: ignore[valid-type]  # msgspec reads it
    checksum: Annotated[
        bool | UnsetType, Meta(description="Whether it is whole, as `countersign key new` makes them.")
    ] = UNSET
    known: Annotated[
        Literal["now", "earlier", "never"] | UnsetType,
        Meta(description="Whether it is in the document in force, or was in an earlier one of this instance."),
    ] = UNSET
    caller: str | UnsetType = UNSET
    credential: str | UnsetType = UNSET


class Unsent(Line, kw_only=True):
    """What a line may hold of a call that was not sent."""

    note: Note = UNSET
    parameter: First = UNSET
    others: Others = UNSET
    upstream_code: Code = UNSET
    retry_after: Seconds = UNSET
    asked: Annotated[
        str | UnsetType, Meta(description="Method, path and names as asked, without ids and keys, truncated.")
    ] = UNSET
    caller: str | UnsetType = UNSET
    credential: str | UnsetType = UNSET
    connection: str | UnsetType = UNSET
    operation: str | UnsetType = UNSET
    policy: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | UnsetType = UNSET
    parameters: Annotated[
        dict[str, Keyed] | UnsetType, Meta(description="What was sent, by name as the caller wrote it.")
    ] = UNSET
    values: dict[str, str] | UnsetType = UNSET
    ledger: Short | UnsetType = UNSET
    secret: str | UnsetType = UNSET
    limit: Annotated[str | UnsetType, Meta(description="The limit or ceiling that is used up.")] = UNSET
    budget: Annotated[Spent | UnsetType, Meta(description="The budget that has no room for it.")] = UNSET


class RefusalLine(Unsent, kw_only=True, tag="refusal"):
    """A call was refused before it was sent. One that broke off after its intent has `intent`."""

    status: int
    reason: str
    detail: Annotated[str, Meta(description="The sentence that the caller got.")]
    intent: str | UnsetType = UNSET
    presented: Annotated[Presented | UnsetType, Meta(description="The credential, of a caller who is not known.")] = (
        UNSET
    )


class Replay(Granted, kw_only=True, tag="replay"):
    """An earlier answer was given again."""


class Preview(Unsent, kw_only=True, tag="preview"):
    """A `validate_only` call: decided, not sent. One that would be refused, or would wait, has the reason."""

    would: Literal[tuple(would.value for would in Would)]  # type: ignore[valid-type]  # msgspec reads it
    status: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    detail: Detail = UNSET


class Look(Line, kw_only=True, tag="look"):
    """A caller asked what it may do, or what became of a key of its own. Nothing is sent."""

    caller: str
    credential: Annotated[str, Meta(description="A key's id, or `google:EMAIL`.")]
    policy: Annotated[Short, Meta(description="The first digits of the digest of the document in force.")]
    asked: Annotated[str, Meta(description="Method and path, without the query.")]


class Counted(Line, kw_only=True, tag="counted"):
    """More calls of one kind by one caller than are written in a second. Their audit ids hold `batch`."""

    counted: Literal["refusal", "replay", "preview", "look"]
    count: Whole
    batch: Whole
    reason: str | UnsetType = UNSET
    caller: Annotated[str | UnsetType, Meta(description="None: all strangers.")] = UNSET


class Policy(Line, kw_only=True, tag="policy"):
    """The policy document changed, or could not be read."""

    result: Literal["taken", "refused", "unread"]
    policy: Annotated[str, Meta(description="The digest of the document in force.")]
    document: Annotated[str | UnsetType, Meta(description="The digest of a refused one.")] = UNSET
    problem: str | UnsetType = UNSET


class Checkpoint(Line, kw_only=True, tag="checkpoint"):
    """Signs the lines before it."""

    key: Annotated[Short, Meta(description="The first digits of the SHA-256 of the public key.")]
    signature: Annotated[
        str, Meta(description="Ed25519, base64: of this line's canonical JSON without `signature`, `hash`, `audit_id`.")
    ]
    last: Annotated[Literal[True] | UnsetType, Meta(description="Only `stop` follows.")] = UNSET


class Resumed(Line, kw_only=True, tag="resumed"):
    """The record can be written again, after a line that could not be."""


class Secret(Line, kw_only=True, tag="secret"):
    """A version of a secret is not used."""

    secret: str
    problem: str


class Resolution(Line, kw_only=True, tag="resolution"):
    """An operator decides what became of a call, or takes such a decision back."""

    ledger: Short
    created: Annotated[str | UnsetType | None, Meta(description="The invoice; null if there is none.")] = UNSET
    takes_back: Annotated[str | UnsetType, Meta(description="The decision that is taken back, and whose it was.")] = (
        UNSET
    )
    by: str
    caller: str
    connection: str
    operation: str


class Resolved(Line, kw_only=True, tag="resolved"):
    """Whether that decision took effect."""

    ledger: Short
    verdict: str
    caller: str
    connection: str
    operation: str


Call = Intent | StepLine | OutcomeLine | RefusalLine | Replay | Preview | Look | Counted
Ours = Start | Stop | Call | Policy | Checkpoint | Resumed | Secret | Resolution | Resolved


class Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One line of the record, as it is written."""

    severity: Literal["INFO", "NOTICE", "WARNING", "ERROR", "ALERT"]
    time: str
    message: Annotated[str, Meta(description="One sentence for people.")]
    countersign: Ours
    labels: dict[str, str] | UnsetType = msgspec.field(name="logging.googleapis.com/labels", default=UNSET)
    trace: str | UnsetType = msgspec.field(name="logging.googleapis.com/trace", default=UNSET)
    span: str | UnsetType = msgspec.field(name="logging.googleapis.com/spanId", default=UNSET)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one line."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Entry)}


def written() -> str:
    """Return the text of ``docs/record.schema.json``."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(written())
