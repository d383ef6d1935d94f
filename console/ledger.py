"""``countersign ledger``: the rare calls whose outcome is unknown, and the operator's decision that settles one.

An open key is one whose call was sent, or may have been, and no answer tells what became of it. It is never sent again
by itself. The operator looks for the invoice at the upstream and says whether it was created. A refusal that does not
prove that nothing was created is kept, and can be resolved too.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from console.lookup import AUDIT_ID, NoAnswerError, look_up, source_of
from gateway.chain import Audit, labels_of
from gateway.settings import SettingError, ledger_of, record_of
from policies.idempotency import SHORT, Verdict
from policies.model import Answer, State
from policies.refusals import RecordUnavailable, StoreUnavailable
from policies.wording import ago, money

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from gateway.stores import Ledger
    from policies.idempotency import Held

#: As the function has it. The command reads it from its environment.
_STORE = "STORE=redis://127.0.0.1:6379/0"
_INVOICE = re.compile(r"in_[A-Za-z0-9]{1,64}")
_KEY = re.compile(r"[0-9a-f]{16,64}")

_NOT_CREATED = "not-created"
_BY_AUDIT_ID = f"{_STORE} ./countersign ledger show fa08e2d5991d-be24f4ed941bc48b83102598 --record record.jsonl"
_COLUMNS = "{:<16}  {:<9}  {:<20}  {:<14}  {:>12}  {}"
_HEADER = _COLUMNS.format("KEY", "STATE", "SINCE", "AGE", "AMOUNT", "WHAT")

_NOT_RESOLVED = {
    Verdict.ABSENT: "The ledger has no such key any more.",
    Verdict.RUNNING: "The call may still be running. Wait half a minute and look again.",
    Verdict.SETTLED: "The outcome of this call is known already; there is nothing to resolve.",
    Verdict.WAITING: (
        "A person may still approve this call at the upstream, which then creates the invoice by itself. Have it "
        "approved or refused there. After that, the same call, sent again, gets its answer."
    ),
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``ledger`` and its commands."""
    group = commands.add_parser(
        "ledger", help="calls whose outcome is unknown", epilog=f"Example: {_STORE} ./countersign ledger list"
    )
    verbs = group.add_subparsers(required=True, metavar="COMMAND")

    listing = verbs.add_parser(
        "list", help="list the calls awaiting a decision", epilog=f"Example: {_STORE} ./countersign ledger list --all"
    )
    listing.add_argument("--all", action="store_true", help="also calls that are running or settled")
    listing.set_defaults(run=_list)

    show = verbs.add_parser(
        "show", help="show one key", epilog=f"Example: {_STORE} ./countersign ledger show 0f9cc0c5c6e4f4a5"
    )
    show.set_defaults(run=_show)

    resolve = verbs.add_parser(
        "resolve",
        help="decide the outcome of one call",
        epilog=f"Example: {_STORE} ./countersign ledger resolve 0f9cc0c5c6e4f4a5 --created in_123 --by ann",
    )
    outcome = resolve.add_mutually_exclusive_group(required=True)
    outcome.add_argument("--created", metavar="INVOICE", help="the invoice exists: its id, such as in_123")
    outcome.add_argument("--not-created", action="store_true", help="there is no invoice: the key may be sent again")
    resolve.add_argument("--by", required=True, metavar="NAME", help="who decides; it goes on record")
    resolve.add_argument("--yes", action="store_true", help="do not ask again whether there is no invoice")
    resolve.set_defaults(run=_resolve)

    for verb in (show, resolve):
        verb.add_argument(
            "key", metavar="KEY", help="16 digits or more of what the record has under ledger; or an audit id"
        )
        verb.add_argument(
            "--record",
            action="append",
            default=[],
            metavar="EXPORT",
            help="an export of the record, in which an audit id is looked up; without any, gcloud is asked",
        )


def _list(asked: argparse.Namespace) -> int:
    return _with_ledger(lambda ledger: _print_list(ledger, everything=asked.all))


def _print_list(ledger: Ledger, *, everything: bool) -> int:
    by_key = {held.key: held for held in ledger.held() if everything or held.open}
    if by_key:
        print(_HEADER)
    for one in sorted(by_key.values(), key=lambda held: held.since):
        print(_line(one))
    if not by_key:
        print("No call is awaiting a decision." if not everything else "The ledger is empty.")
    return 0


def _show(asked: argparse.Namespace) -> int:
    def show(ledger: Ledger) -> int:
        one = _one(ledger, _named(asked))
        print(f"{_HEADER}\n{_line(one)}\n\nkey        {one.key}")
        if one.resolvable:
            print(
                f"\n{_become(one)} Its intent is in the record under\n"
                f"ledger {one.key[:SHORT]}. Look for the invoice at the upstream, then say what you found:\n"
                f"  countersign ledger resolve {one.key[:SHORT]} --created INVOICE --by YOU\n"
                f"  countersign ledger resolve {one.key[:SHORT]} --not-created --by YOU"
            )
        return 0

    return _with_ledger(show)


def _resolve(asked: argparse.Namespace) -> int:
    created: str | None = asked.created
    if created is not None and not _INVOICE.fullmatch(created):
        return _say("--created takes the invoice's id, such as in_1MZX60Iyq0PiFIhUHls7HxJ4.")
    if not asked.by.strip() or not asked.by.isprintable():
        return _say("--by takes the name of the person who decides.")

    def resolve(ledger: Ledger) -> int:
        one = _one(ledger, _named(asked))
        if not one.resolvable:
            return _say(_NOT_RESOLVED[Verdict.RUNNING if one.running else Verdict.SETTLED])
        print(f"{_line(one)}\n{_plan(created, asked.by)}", file=sys.stderr, flush=True)
        if created is None and not asked.yes and not _said_again():
            return _say("Nothing was changed.")
        return _decide(ledger, one, created, asked.by)

    return _with_ledger(resolve)


def _plan(created: str | None, by: str) -> str:
    if created is None:
        return (
            f"What {by} says goes on record: nothing was created. The same key can then be sent again, and raises an "
            "invoice: if there is one already, there will be two."
        )
    return (
        f"What {by} says goes on record: {created} was created. A call with the same key then gets its id, and null "
        "for whatever else the policy grants."
    )


def _said_again() -> bool:
    """Have the person at the terminal say it twice. Where nobody can be asked, it was not said."""
    if not sys.stdin.isatty():
        print(f"To go on where nobody can be asked, add --yes to --{_NOT_CREATED}.", file=sys.stderr)
        return False
    print(f"To go on, write {_NOT_CREATED} once more: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == _NOT_CREATED


def _decide(ledger: Ledger, one: Held, created: str | None, by: str) -> int:
    """Put a decision on record, carry it out, and put on record whether it took effect."""
    audit = Audit(record_of(os.environ), policy="")
    about = {"ledger": one.key[:SHORT], "caller": one.caller, "connection": one.connection, "operation": one.operation}
    said = f"{by}: {_NOT_CREATED.replace('-', ' ') if created is None else f'created {created}'}"
    what = f"what {one.caller} asked for with {one.operation} on {one.connection}"
    labels = labels_of(caller=one.caller, connection=one.connection, operation=one.operation)
    answer = None
    if created is not None:
        answer = Answer(200, json.dumps({"id": created}, separators=(",", ":")).encode(), partial=True)
    # On record first: a decision about money that cannot be recorded is not carried out.
    try:
        audit.write("resolution", about | {"created": created, "by": by}, "NOTICE", f"{said}, of {what}", labels)
    except RecordUnavailable:
        return _say(
            "Nothing was changed: the decision goes on record first, on standard output or where AUDIT says, which "
            "cannot be written."
        )
    try:
        verdict = ledger.resolve(one.key, answer, said)
        took = "took effect" if verdict is Verdict.RESOLVED else f"did not take effect ({verdict.value})"
        audit.write("resolved", about | {"verdict": verdict.value}, "INFO", f"the decision {took}, of {what}", labels)
    finally:
        audit.close()
    if verdict is not Verdict.RESOLVED:  # somebody else was quicker
        return _say(_NOT_RESOLVED[verdict])
    print(f"Resolved. {_told(created)}", file=sys.stderr)
    return 0


def _told(created: str | None) -> str:
    if created is None:
        return "The same key may be sent again."
    return f"A call with the same key now gets {created}, if the policy grants the id."


def _with_ledger(work: Callable[[Ledger], int]) -> int:
    try:
        return work(ledger_of(os.environ))
    except (SettingError, NoAnswerError) as error:
        return _say(str(error))
    except StoreUnavailable as error:
        return _say(f"The store does not answer ({error.note}). Is STORE right, and can this machine reach it?")


def _named(asked: argparse.Namespace) -> str:
    """Return the ledger's name of the key that was asked for, if by an audit id. Raises :class:`NoAnswerError`."""
    if not AUDIT_ID.fullmatch(asked.key):
        return str(asked.key)
    with ExitStack() as stack:
        ledger = look_up(source_of(asked.record, None, stack, _BY_AUDIT_ID), asked.key).ledger
    if ledger is None:
        raise NoAnswerError("This call had no idempotency key, so the ledger has nothing about it.")
    return ledger


def _one(ledger: Ledger, key: str) -> Held:
    """Return the only key that begins like this. Raises :class:`NoAnswerError`."""
    if not _KEY.fullmatch(key):
        raise NoAnswerError(
            "A key is at least 16 hexadecimal digits, what the record has under ledger; or write an audit id."
        )
    found = {held.key: held for held in ledger.held(key)}
    if len(found) > 1:
        raise NoAnswerError("Several keys begin with that. Write more digits.")
    if not found:
        raise NoAnswerError("The ledger has no such key any more.")
    return next(iter(found.values()))


def _line(one: Held) -> str:
    since = datetime.fromtimestamp(one.since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    state = "running" if one.running else "unknown" if one.open else one.state.value
    sum_ = "" if one.amount is None or one.currency is None else money(one.amount, one.currency)
    waits = f", waits for {one.approval} to be approved" if one.approval is not None else ""
    said = f", {one.said}" if one.said else ""
    what = f"{one.caller}, {one.operation} on {one.connection}{waits}{said}"
    return _COLUMNS.format(one.key[:SHORT], state, since, ago(time.time() - one.since), sum_, what)


def _become(one: Held) -> str:
    if one.state is State.REJECTED:
        return "The call was refused, in words that do not prove that nothing was created."
    if one.approval is not None:
        return (
            f"The upstream has a person approve this call ({one.approval}), and then carries it out by itself.\n"
            "Have it approved or refused there: after that, the same call, sent again, gets its answer."
        )
    return "The call was sent, or may have been, and its answer never came."


def _say(problem: str) -> int:
    print(problem, file=sys.stderr)
    return 1
