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
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.chain import Audit
from gateway.settings import SettingError, ledger_of
from gateway.sinks import standard_output
from policies.idempotency import SHORT, Verdict
from policies.model import Answer, State
from policies.refusals import RecordUnavailable, StoreUnavailable

if TYPE_CHECKING:
    import argparse

    from gateway.stores import Ledger
    from policies.idempotency import Held

#: As the function has it. The command reads it from its environment.
_STORE = "STORE=redis://127.0.0.1:6379/0"
_INVOICE = re.compile(r"in_[A-Za-z0-9]{1,64}")
_KEY = re.compile(r"[0-9a-f]{16,64}")

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
    show.add_argument("key", metavar="KEY", help="16 digits or more: what the record has under ledger")
    show.set_defaults(run=_show)

    resolve = verbs.add_parser(
        "resolve",
        help="decide the outcome of one call",
        epilog=f"Example: {_STORE} ./countersign ledger resolve 0f9cc0c5c6e4f4a5 --created in_123 --by ann",
    )
    resolve.add_argument("key", metavar="KEY")
    outcome = resolve.add_mutually_exclusive_group(required=True)
    outcome.add_argument("--created", metavar="INVOICE", help="the invoice exists: its id, such as in_123")
    outcome.add_argument("--not-created", action="store_true", help="there is no invoice: the key may be sent again")
    resolve.add_argument("--by", required=True, metavar="NAME", help="who decides; it goes on record")
    resolve.set_defaults(run=_resolve)


def _list(asked: argparse.Namespace) -> int:
    return _with_ledger(lambda ledger: _print_list(ledger, everything=asked.all))


def _print_list(ledger: Ledger, *, everything: bool) -> int:
    held = sorted((held for held in ledger.held() if everything or held.open), key=lambda held: held.since)
    for one in held:
        print(_line(one))
    if not held:
        print("No call is awaiting a decision." if not everything else "The ledger is empty.")
    return 0


def _show(asked: argparse.Namespace) -> int:
    def show(ledger: Ledger) -> int:
        one = _one(ledger, asked.key)
        if one is None:
            return 1
        print(_line(one))
        print(f"key        {one.key}\noperation  {one.operation}")
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
        one = _one(ledger, asked.key)
        if one is None:
            return 1
        if not one.resolvable:
            return _say(_NOT_RESOLVED[Verdict.RUNNING if one.running else Verdict.SETTLED])
        # On record first: a decision about money that cannot be recorded is not carried out.
        audit = Audit(standard_output(), policy="")
        decision: dict[str, Any] = {"ledger": one.key[:SHORT], "created": created, "by": asked.by}
        decision |= {"caller": one.caller, "connection": one.connection, "operation": one.operation}
        answer = None if created is None else Answer(200, json.dumps({"id": created}, separators=(",", ":")).encode())
        try:
            audit.write("resolution", decision, "NOTICE", "resolution")
        except RecordUnavailable:
            return _say("Nothing was changed: the decision goes on record on standard output, which cannot be written.")
        try:
            verdict = ledger.resolve(one.key, answer)
            audit.write("resolved", {"ledger": one.key[:SHORT], "verdict": verdict.value}, "INFO", "resolved")
        finally:
            audit.close()
        if verdict is not Verdict.RESOLVED:  # somebody else was quicker
            return _say(_NOT_RESOLVED[verdict])
        print(f"Resolved. {_told(created)}", file=sys.stderr)
        return 0

    return _with_ledger(resolve)


def _told(created: str | None) -> str:
    if created is None:
        return "The same key may be sent again."
    return f"A call with the same key now gets {created}, if the policy grants the id."


def _with_ledger(work: Any) -> int:
    try:
        status: int = work(ledger_of(os.environ))
    except SettingError as error:
        return _say(str(error))
    except StoreUnavailable as error:
        return _say(f"The store does not answer ({error.note}). Is STORE right, and can this machine reach it?")
    return status


def _one(ledger: Ledger, key: str) -> Held | None:
    if not _KEY.fullmatch(key):
        _say("A key is at least 16 hexadecimal digits: what the record has under ledger.")
        return None
    found = list(ledger.held(key))
    if len(found) == 1:
        return found[0]
    _say("The ledger has no such key any more." if not found else "Several keys begin with that. Write more digits.")
    return None


def _line(one: Held) -> str:
    since = datetime.fromtimestamp(one.since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    state = "running" if one.running else "unknown" if one.open else one.state.value
    hours = (time.time() - one.since) / 3600
    waits = f", waits for {one.approval} to be approved" if one.approval is not None else ""
    return f"{one.key[:SHORT]}  {state:<9}  {since} ({hours:.1f} h ago)  {one.caller} on {one.connection}{waits}"


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
