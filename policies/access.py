"""Decides whether a caller may make a call. Grants are made nowhere else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from policies import forms, idempotency, keynames, lines, parameters
from policies.model import WEBHOOK_IDS, Grant
from policies.refusals import (
    AccountNotGranted,
    BodyMalformed,
    CallerPaused,
    ConnectionNotGranted,
    Fault,
    IdempotencyKeyInvalid,
    IdempotencyKeyMissing,
    PolicyRefusal,
)
from policies.upstreams import UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.model import Budget, Call, Caller, Connection, Entitlement, PolicySet

_NOT_SIGNED: Final = (
    "Leave out the Idempotency-Key header: your signature does not cover it. The body itself is the key, so send the "
    "same body, byte for byte, to repeat a call. To name your calls yourself, ask the operator of Countersign to take "
    "the key from a parameter (idempotency: from)."
)


def decide(policy_set: PolicySet, caller: Caller, call: Call) -> Grant:
    """Approve ``call``, or raise the refusal that says why not. What the policy does not allow is denied.

    Raises :class:`CallerPaused`, :class:`ConnectionNotGranted`, :class:`AccountNotGranted`, :class:`BodyMalformed`,
    the refusals of ``parameters.approve``, and those of the idempotency key.
    """
    if caller.paused:
        raise CallerPaused
    entitlement = caller.entitlements.get((call.name, call.connection_name, call.operation))
    tied = caller.tied
    if entitlement is None or (tied is not None and entitlement.connection.id != tied.id):
        entitlement = _own(caller, call)
    if call.accounts:
        _check_accounts(entitlement.connection, call.accounts)
    try:
        asked, approved = parameters.approve(entitlement, given(call))
    except PolicyRefusal as refusal:
        raise _with_key(refusal, caller, entitlement, call) from None
    key = _idempotency_key(caller, entitlement, call, asked)
    ledger_key = None
    if key is not None:
        ledger_key = idempotency.identity(caller.first, *entitlement.connection.first, entitlement.operation.id, key)
    if entitlement.stamp is not None:
        approved = _stamped(approved, entitlement.stamp, ledger_key)
    written = approved
    if call.path_parameters:  # these are in the URL
        written = {path: value for path, value in approved.items() if path not in call.path_parameters}
    budgets, reserve, currency = _counted(caller, entitlement, approved) if caller.budgets else ((), 0, "")
    form = forms.encode(written)
    sent = hashlib.sha256(form).hexdigest()
    return Grant(
        caller=caller,
        entitlement=entitlement,
        parameters=approved,
        form=form,
        ledger_key=ledger_key,
        # Of what was asked, not of what is sent: neither a change of the policy's fixed values nor a caller who sends
        # them, too, may break a repeated call; and what is in the path is asked too.
        fingerprint=hashlib.sha256(forms.encode(_free(asked, entitlement))).hexdigest()
        if entitlement.fixed or entitlement.stamp is not None or call.path_parameters
        else sent,
        written=sent,
        policy=policy_set.digest,
        validate_only=call.validate_only,
        resend_seconds=UPSTREAMS[entitlement.connection.upstream].deduplicates,
        reserve=reserve,
        currency=currency,
        budgets=budgets,
    )


def _free(asked: Mapping[str, str], entitlement: Entitlement) -> Mapping[str, str]:
    """Return what the caller decides of a call. What the policy fixes is the same, sent or not."""
    fixed = entitlement.fixed
    return {path: value for path, value in asked.items() if path not in fixed} if fixed else asked


def _counted(
    caller: Caller, entitlement: Entitlement, approved: Mapping[str, str]
) -> tuple[tuple[Budget, ...], int, str]:
    """Return the budgets that a call counts against, what it may come to, and the currency of that if it is named."""
    operation, amount = entitlement.operation, entitlement.amount
    if not operation.spends_at(entitlement.connection.upstream):
        return (), 0, ""
    named, currency = None, approved.get("currency", "")
    if operation.whole:
        named = lines.asked(approved).total
    elif "amount" in approved and currency:
        named = int(approved["amount"])
    if named is None or lines.varies(approved):
        assert amount is not None and amount.max is not None  # noqa: PT018, S101 - the document must say it then
        named = amount.max
    possible = {currency} if currency else set(amount.currencies if amount is not None else ())
    budgets = tuple(one for one in caller.budgets if not possible or one.currency in possible)
    return budgets, max(0, named), currency


def _own(caller: Caller, call: Call) -> Entitlement:
    """Return what a call may do on the one connection that its credential is tied to, named or not."""
    tied, named = caller.tied, bool(call.name)
    if tied is None:
        raise (
            ConnectionNotGranted
            if named
            else ConnectionNotGranted(
                "This address names no connection, and your credential is not tied to one. Write "
                "/NAME/CONNECTION_NAME/v1/... instead of /v1/..., or ask the operator of Countersign to tie your "
                "credential to a connection."
            )
        )
    if named and (call.name, call.connection_name) != (tied.name, tied.connection_name):
        raise ConnectionNotGranted(note=f"{caller.credential} of {caller.id} is tied to {tied.id}")
    entitlement = caller.entitlements.get((tied.name, tied.connection_name, call.operation))
    if entitlement is None:
        raise ConnectionNotGranted
    return entitlement


def _check_accounts(connection: Connection, accounts: Mapping[str, str]) -> None:
    """Refuse a call for another account than the policy's: no header is passed on, so it would be made there."""
    ours = connection.settings.get(UPSTREAMS[connection.upstream].account)
    for header, account in accounts.items():
        if account != ours:
            raise AccountNotGranted(header)


def given(call: Call) -> dict[str, str]:
    """Return the parameters of a call as they were sent, wherever they stand. Raises :class:`BodyMalformed`."""
    parsed = forms.parse(call.body, call.media)
    if not call.path_parameters:
        return parsed
    for name in call.path_parameters:
        if name in parsed:
            raise BodyMalformed(f"{name} is given twice: it is already in the path.")
    return {**call.path_parameters, **parsed}


def _stamped(approved: dict[str, str], stamp: str, ledger_key: str | None) -> dict[str, str]:
    """Add what lets an operator find the invoice at the upstream."""
    if ledger_key is None:
        return approved
    return forms.canonical({**approved, stamp: ledger_key[: idempotency.SHORT]})


def _idempotency_key(caller: Caller, entitlement: Entitlement, call: Call, asked: Mapping[str, str]) -> str | None:
    """Return the idempotency key of a call: a parameter, something that was signed, or the header."""
    source = entitlement.idempotency
    if entitlement.operation.repeatable:
        return None
    if source.parameter is not None:
        # The header is ignored: SDKs send a fresh one by themselves, which would defeat the policy.
        return asked[source.parameter]
    if not WEBHOOK_IDS.isdisjoint(call.credentials):
        # Signed, unlike the header. The comma, which no header's key contains, prevents collisions.
        [name] = WEBHOOK_IDS & call.credentials.keys()
        named = call.credentials[name].reveal()
        _check(name, named)
        return f"webhook,{named}"
    if caller.body_signed:
        if call.idempotency_key is not None:
            # A sender who relies on it, and writes the body anew for each attempt, would get a second invoice.
            raise IdempotencyKeyInvalid(_NOT_SIGNED)
        return f"body,{hashlib.sha256(call.body).hexdigest()}"
    if call.idempotency_key is None:
        if source.required:
            raise IdempotencyKeyMissing
        return None
    written = call.idempotency_key
    key = keynames.unquoted(written) if written.startswith('"') else written
    if key is None:
        raise IdempotencyKeyInvalid(
            "The Idempotency-Key header begins with a quotation mark. Write the key without any, such as order-1001, "
            "or with one at each end and nothing behind the second. Send it once."
        )
    if not keynames.HEADER.fullmatch(key):
        raise IdempotencyKeyInvalid
    _check("Idempotency-Key", key, source.prefix)
    return key


def _with_key(refusal: PolicyRefusal, caller: Caller, entitlement: Entitlement, call: Call) -> PolicyRefusal:
    """Add to the faults of the parameters what is wrong with the header's key, so that all is mended at once."""
    if entitlement.idempotency.parameter is not None:
        return refusal
    try:
        _idempotency_key(caller, entitlement, call, {})
    except (IdempotencyKeyMissing, IdempotencyKeyInvalid) as other:
        prefix = entitlement.idempotency.prefix
        key = Fault(type(other), "Idempotency-Key", other.detail, {"prefix": prefix} if prefix else {})
        return parameters.refusal_of([*refusal.faults, key])
    return refusal


def _check(header: str, key: str, prefix: str = "") -> None:
    """Refuse a key that cannot name one call. A parameter that is the key was checked with all others."""
    fault = keynames.fault(key, prefix)
    if fault is not None:
        raise IdempotencyKeyInvalid(f"The {header} header {fault}")
