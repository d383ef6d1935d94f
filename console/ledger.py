"""``countersign ledger``: the rare calls whose outcome is unknown, and the operator's decision that settles one.

An open key is one whose call was sent, or may have been, and no answer tells what became of it. It is never sent again
by itself. The operator looks for the invoice at the upstream and says whether it was created. A refusal that does not
prove that nothing was created is kept, and can be resolved too. A decision can be taken back until a call uses it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from console.lookup import AUDIT_ID, NoAnswerError, look_up, source_of
from gateway.chain import labels_of
from gateway.secrets import SIGN_IN
from gateway.settings import SettingError, ledger_of, record_of
from policies.idempotency import RETENTION, SHORT, Verdict
from policies.model import Answer, State
from policies.refusals import RecordUnavailable, StoreUnavailable
from policies.wording import ago, money

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from gateway.chain import Audit
    from gateway.stores import Ledger
    from policies.idempotency import Held

#: As the function has it. The command reads it from its environment.
_STORE = "STORE=redis://127.0.0.1:6379/0"
_INVOICE = re.compile(r"in_[A-Za-z0-9]{1,64}")
_KEY = re.compile(r"[0-9a-f]{16,64}")

#: What a person writes once more before something that may lead to a second invoice, or changes what was decided.
_NOT_CREATED, _REOPEN = "not-created", "reopen"
_BY_AUDIT_ID = f"{_STORE} ./countersign ledger show fa08e2d5991d-be24f4ed941bc48b83102598 --record record.jsonl"
_COLUMNS = "{:<16}  {:<9}  {:<20}  {:<14}  {:>12}  {}"
_HEADER = _COLUMNS.format("KEY", "STATE", "SINCE", "AGE", "AMOUNT", "WHAT")

_GONE = "The ledger has no such key any more."
_OVER = f"{_GONE} A decision is kept for {RETENTION // 3600} hours, and cannot be taken back after that."
_UNCHANGED = "Nothing was changed."

#: What to do about what Google's client says of Firestore, by the name of its exception.
_MENDING = {
    **SIGN_IN,
    "PermissionDenied": "Your own account needs roles/datastore.user on this database, as the function's does.",
    "NotFound": "There is no such database: correct STORE, or create it.",
}

_NOT_RESOLVED = {
    Verdict.ABSENT: _GONE,
    Verdict.RUNNING: "The call may still be running. Wait half a minute and look again.",
    Verdict.SETTLED: "The outcome of this call is known already; there is nothing to resolve.",
    Verdict.WAITING: (
        "A person may still approve this call at the upstream, which then creates the invoice by itself. Have it "
        "approved or refused there. After that, the same call, sent again, gets its answer."
    ),
    Verdict.NAMED: (
        "The ledger names a draft of this call. The same call, sent again, looks what became of that, and finalizes or "
        "deletes it; so nobody has to guess."
    ),
}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``ledger`` and its commands."""
    group = commands.add_parser(
        "ledger", help="calls whose outcome is unknown", epilog=f"Example: {_STORE} ./countersign ledger list"
    )
    verbs = group.add_subparsers(required=True, metavar="COMMAND")

    listing = verbs.add_parser(
        "list",
        help="list the calls awaiting a decision, and the decisions that can be taken back",
        epilog=f"Example: {_STORE} ./countersign ledger list --all",
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
    resolve.set_defaults(run=_resolve)

    reopen = verbs.add_parser(
        "reopen",
        help="take a decision back that no call has used yet",
        epilog=f"Example: {_STORE} ./countersign ledger reopen 0f9cc0c5c6e4f4a5 --by ann",
    )
    reopen.set_defaults(run=_reopen)

    for verb in (resolve, reopen):
        verb.add_argument("--by", required=True, metavar="NAME", help="who decides; it goes on record")
        verb.add_argument("--yes", action="store_true", help="do not ask again")
    for verb in (show, resolve, reopen):
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
    shown = (held for held in ledger.held() if everything or held.open or held.reopens is not None)
    by_key = {held.key: held for held in shown}
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
        short = one.key[:SHORT]
        print(f"{_HEADER}\n{_line(one)}\n\nkey        {one.key}")
        if one.resolvable and one.id is not None:
            print(f"\n{_begun(one)}")
        elif one.resolvable:
            print(
                f"\n{_become(one)} Its intent is in the record under\n"
                f"ledger {short}. Look for the invoice at the upstream, then say what you found:\n"
                f"  countersign ledger resolve {short} --created INVOICE --by YOU\n"
                f"  countersign ledger resolve {short} --not-created --by YOU"
            )
        elif one.reopens is not None:
            print(
                "\nNo call has used this decision yet. Until one does, it can be taken back:\n"
                f"  countersign ledger reopen {short} --by YOU"
            )
        elif one.told:
            print(f"\n{_stands(one)}")
        return 0

    return _with_ledger(show)


# ---------------------------------------------------------------- a decision


def _resolve(asked: argparse.Namespace) -> int:
    created: str | None = asked.created
    if created is not None and not _INVOICE.fullmatch(created):
        return _say("--created takes the invoice's id, such as in_1MZX60Iyq0PiFIhUHls7HxJ4.")
    if not _names(asked.by):
        return _say("--by takes the name of the person who decides.")

    def resolve(ledger: Ledger) -> int:
        one, record = _one(ledger, _named(asked)), record_of(os.environ)
        if not one.resolvable:
            return _say(_NOT_RESOLVED[Verdict.RUNNING if one.running else Verdict.SETTLED] + _first_reopen(one))
        print(f"{_line(one)}\n{_plan(created, asked.by)}", file=sys.stderr, flush=True)
        if created is None and not asked.yes and not _said_again(_NOT_CREATED):
            return _say(_UNCHANGED)
        said = f"{asked.by}: {_NOT_CREATED.replace('-', ' ') if created is None else f'created {created}'}"
        answer = None
        if created is not None:
            answer = Answer(200, json.dumps({"id": created}, separators=(",", ":")).encode(), partial=True)
        decision = {"created": created, "by": asked.by}
        verdict = _on_record(record, one, decision, said, lambda: ledger.resolve(one.key, answer, said))
        if verdict is not Verdict.RESOLVED:  # somebody else was quicker
            return _say(_NOT_RESOLVED[verdict])
        print(
            f"Resolved. {_told(created)} Until a call has used this decision, it can be taken back: countersign ledger "
            f"reopen {one.key[:SHORT]} --by YOU",
            file=sys.stderr,
        )
        return 0

    return _with_ledger(resolve)


def _reopen(asked: argparse.Namespace) -> int:
    if not _names(asked.by):
        return _say("--by takes the name of the person who takes the decision back.")

    def reopen(ledger: Ledger) -> int:
        one, record = _one(ledger, _named(asked), gone=_OVER), record_of(os.environ)
        if one.reopens is None:
            return _say(_stands(one))
        print(f"{_line(one)}\n{_plan_back(one, asked.by)}", file=sys.stderr, flush=True)
        if not asked.yes and not _said_again(_REOPEN):
            return _say(_UNCHANGED)
        decision, said = {"takes_back": one.said, "by": asked.by}, f"{asked.by}: takes back what was said ({one.said})"
        if _on_record(record, one, decision, said, lambda: ledger.reopen(one.key)) is not Verdict.REOPENED:
            return _say(_stands(_one(ledger, one.key, gone=_OVER)))  # a call, or somebody else, was quicker
        print("Reopened. It can be resolved again.", file=sys.stderr)
        return 0

    return _with_ledger(reopen)


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


def _plan_back(one: Held, by: str) -> str:
    was = (
        "a refusal that does not prove that nothing was created"
        if one.reopens is State.REJECTED
        else "of unknown outcome"
    )
    return (
        f"That {by} takes this decision back goes on record. The call is then again what it was, {was}, and the same "
        "key is answered so."
    )


def _stands(one: Held) -> str:
    """Say why there is nothing to take back."""
    if not one.told:
        return "No operator's decision is in force for this call, so there is nothing to take back."
    return (
        f"A call with this key used the decision ({one.said}) {ago(time.time() - one.told)}, at {_moment(one.told)}. "
        "What a caller was told stands: the decision cannot be taken back."
    )


def _first_reopen(one: Held) -> str:
    if one.reopens is None:
        return ""
    return f" To decide otherwise, take the decision back first: countersign ledger reopen {one.key[:SHORT]} --by YOU"


def _said_again(word: str) -> bool:
    """Have the person at the terminal say it twice. Where nobody can be asked, it was not said."""
    if not sys.stdin.isatty():
        print("To go on where nobody can be asked, add --yes.", file=sys.stderr)
        return False
    print(f"To go on, write {word} once more: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == word


def _on_record(
    record: Audit, one: Held, decision: dict[str, Any], said: str, carry_out: Callable[[], Verdict]
) -> Verdict:
    """Put a decision on record, carry it out, and put on record whether it took effect.

    Raises :class:`NoAnswerError` if it cannot be recorded: then nothing was changed.
    """
    about = {"ledger": one.key[:SHORT], "caller": one.caller, "connection": one.connection, "operation": one.operation}
    what = f"what {one.caller} asked for with {one.operation} on {one.connection}"
    labels = labels_of(caller=one.caller, connection=one.connection, operation=one.operation)
    try:
        record.write("resolution", about | decision, "NOTICE", f"{said}, of {what}", labels)
    except RecordUnavailable:
        raise NoAnswerError(
            "Nothing was changed: the decision goes on record first, on standard output or where AUDIT says, which "
            "cannot be written."
        ) from None
    try:
        verdict = carry_out()
        done = verdict in {Verdict.RESOLVED, Verdict.REOPENED}
        took = "took effect" if done else f"did not take effect ({verdict.value})"
        record.write("resolved", about | {"verdict": verdict.value}, "INFO", f"the decision {took}, of {what}", labels)
    except RecordUnavailable:
        print("Whether the decision took effect could not be put on record.", file=sys.stderr)
    finally:
        record.close()
    return verdict


def _told(created: str | None) -> str:
    if created is None:
        return "The same key may be sent again."
    return f"A call with the same key now gets {created}, if the policy grants the id."


# ---------------------------------------------------------------- one key


def _with_ledger(work: Callable[[Ledger], int]) -> int:
    try:
        return work(ledger_of(os.environ))
    except (SettingError, NoAnswerError) as error:
        return _say(str(error))
    except StoreUnavailable as error:
        mending = _MENDING.get(error.note or "", "Is STORE right, and can this machine reach it?")
        return _say(f"The store does not answer ({error.note}). {mending}")


def _names(by: str) -> bool:
    return bool(by.strip()) and by.isprintable()


def _named(asked: argparse.Namespace) -> str:
    """Return the ledger's name of the key that was asked for, if by an audit id. Raises :class:`NoAnswerError`."""
    if not AUDIT_ID.fullmatch(asked.key):
        return str(asked.key)
    with ExitStack() as stack:
        told = look_up(source_of(asked.record, None, stack, _BY_AUDIT_ID), asked.key)
    if told.ledger is not None:
        return told.ledger
    if not told.own or told.own[0]["kind"] == "counted":
        raise NoAnswerError(
            "This call has no line of its own, so the record does not say which key it had. Nothing was sent by it. "
            "Write the audit id of another call with the key."
        )
    raise NoAnswerError("This call had no idempotency key, so the ledger has nothing about it.")


def _one(ledger: Ledger, key: str, gone: str = _GONE) -> Held:
    """Return the only key that begins like this. Raises :class:`NoAnswerError`; ``gone`` is for none."""
    if not _KEY.fullmatch(key):
        raise NoAnswerError(
            "A key is at least 16 hexadecimal digits, what the record has under ledger; or write an audit id."
        )
    found = {held.key: held for held in ledger.held(key)}
    if len(found) > 1:
        raise NoAnswerError("Several keys begin with that. Write more digits.")
    if not found:
        raise NoAnswerError(gone)
    return next(iter(found.values()))


def _line(one: Held) -> str:
    state = "running" if one.running else "unknown" if one.open else one.state.value
    sum_ = "" if one.amount is None or one.currency is None else money(one.amount, one.currency)
    waits = f", waits for {one.approval} to be approved" if one.approval is not None else ""
    begun = f", has begun {one.id}" if one.open and one.id is not None else ""
    what = f"{one.caller}, {one.operation} on {one.connection}{begun}{waits}{_said(one)}"
    return _COLUMNS.format(one.key[:SHORT], state, _moment(one.since), ago(time.time() - one.since), sum_, what)


def _said(one: Held) -> str:
    """Say what an operator decided, and whether that can be taken back."""
    if not one.said:
        return ""
    if one.reopens is not None:
        return f", {one.said} (can be taken back)"
    return f", {one.said} (first used {ago(time.time() - one.told)})" if one.told else f", {one.said}"


def _moment(time_: float) -> str:
    return datetime.fromtimestamp(time_, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _become(one: Held) -> str:
    if one.state is State.REJECTED:
        return "The call was refused, in words that do not prove that nothing was created."
    if one.approval is not None:
        return (
            f"The upstream has a person approve this call ({one.approval}), and then carries it out by itself.\n"
            "Have it approved or refused there: after that, the same call, sent again, gets its answer."
        )
    return "The call was sent, or may have been, and its answer never came."


def _begun(one: Held) -> str:
    waits = "" if one.approval is None else f" The upstream has a person approve a step of it first ({one.approval})."
    return (
        f"The call has begun {one.id} and may have come as far as the step {one.step}.{waits}\n"
        "Nobody has to decide: the same call, sent again with its key, looks what became of that, and finishes or\n"
        f"deletes it. If nobody sends it again, look for {one.id} at the upstream. A draft harms nobody; delete it\n"
        "there. If it is finalized and right, say so:\n"
        f"  countersign ledger resolve {one.key[:SHORT]} --created {one.id} --by YOU"
    )


def _say(problem: str) -> int:
    print(problem, file=sys.stderr)
    return 1
