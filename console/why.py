"""``countersign why``: what became of one call, from its audit id and an export of the record."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from console.documents import opened
from console.lookup import EXAMPLE, MESSAGE, Content, NoAnswerError, Told, in_order, look_up, source_of
from gateway.reloading import read
from policies import compiled, parameters
from policies.document import LOADER
from policies.foresight import Would
from policies.idempotency import SHORT, Verdict
from policies.model import DocumentError, Outcome
from policies.operations import OPERATIONS
from policies.refusals import Refusal
from policies.wording import budget_in_words, limit_in_words, money

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from policies.model import Caller, Entitlement, PolicySet

REFUSALS: Final = Path(__file__).parent.with_name("docs") / "refusals.md"
_ODD: Final = "A line of this call is not as Countersign writes it, or of an earlier version of Countersign."
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``why``."""
    why = commands.add_parser("why", help="say what became of one call", epilog=f"Example: {EXAMPLE}")
    why.add_argument("audit_id", metavar="AUDIT_ID", help="what the caller got: Countersign-Audit-Id, or in the body")
    why.add_argument(
        "export",
        nargs="*",
        metavar="EXPORT",
        help="exports of the record, also .gz; - for standard input. Without any, gcloud is asked",
    )
    why.add_argument("--policy", type=Path, metavar="FILE", help="the document that was in force: shows its line")
    why.add_argument("--project", metavar="PROJECT", help="the Google Cloud project that gcloud asks")
    why.set_defaults(run=_run)


def _run(asked: argparse.Namespace) -> int:
    try:
        with ExitStack() as stack:
            told = look_up(source_of(asked.export, asked.project, stack), asked.audit_id)
            said = [paragraph(told, asked.policy), "", *map(_shown, in_order(told.own + told.others))]
    except NoAnswerError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyError, TypeError, ValueError, AttributeError):
        print(f"{_ODD} ./countersign audit verify says whether it was edited.", file=sys.stderr)
        return 1
    print("\n".join(map(_printable, said)))
    return 0


# ---------------------------------------------------------------- the paragraph


def paragraph(told: Told, policy: Path | None) -> str:
    """Answer in plain words: who, what was asked, what became of it, what decided, and what to do next."""
    if not told.own:
        return (
            "The call was refused, and its line could not be written: standard error has an alert of that time. "
            "Nothing was sent. Was the disk full, or the log down?"
        )
    first, last = told.own[0], told.own[-1]
    if first["kind"] == "counted":
        return _counted(told)
    if first["kind"] not in _CALLS:
        return f"No caller was given this audit id. Its line says: {first[MESSAGE]}."
    said = [f"On {_time(first)}, {_who(first)} {_ASKED.get(first['kind'], 'asked for')} {_what(first)}."]
    said.append(_end(last))
    if policy is not None or last["kind"] == "refusal":
        said += _decided(last, policy)
    said += [*_of_the_key(told), *_next(last, told)]
    return " ".join(part for part in said if part)


#: The kinds of line that a call begins with.
_CALLS: Final = frozenset({"intent", "outcome", "refusal", "replay", "preview", "look"})
_ASKED: Final = {"preview": "tried", "replay": "asked again for", "look": "looked at"}


def _counted(told: Told) -> str:
    line = told.own[0]
    kind = {
        "refusal": "refused",
        "replay": "answered with what was kept",
        "preview": "tried and not sent",
        "look": "looks",
    }
    reason = f" ({line['reason']})" if "reason" in line else ""
    said = (
        f"This call was one of {line['count']} of {line.get('caller', 'callers who did not prove who they are')} that "
        f"were {kind[line['counted']]}{reason} and only counted, before {_time(line)}: past ten a second of one kind "
        "from one caller no line is written. Nothing was sent."
    )
    for other in told.others:
        said += f" The last one with a line: {_who(other)} asked for {_what(other)}. {_end(other)}"
    return f"{said} {_advice(line.get('reason'))}".strip()


def _who(line: Content) -> str:
    if "caller" in line:
        return f"{line['caller']} (credential {line['credential']})"
    brought = line.get("presented", {})
    match brought.get("known"):
        case "earlier":
            return (
                f"somebody with a key that is no longer in the policy ({brought['credential']} of {brought['caller']})"
            )
        case "now":
            return f"somebody with a key that has expired ({brought['credential']} of {brought['caller']})"
        case "never":
            whole = "whole" if brought.get("checksum") else "not whole, or made elsewhere"
            return f"somebody with a key that this instance never knew ({whole})"
    return "somebody who did not prove who it was"


def _what(line: Content) -> str:
    if line["kind"] == "look":
        return str(line["asked"])
    asked = f" ({line['asked']})" if "asked" in line else ""
    where = f" on {line['connection']}" if "connection" in line else ""
    values = "".join(f", {path} {value!a}" for path, value in line.get("values", {}).items())
    return f"{line.get('operation', 'a call')}{where}{asked}{values}"


def _end(line: Content) -> str:
    """Say what became of the call."""
    match line["kind"]:
        case "intent":
            return (
                "It was about to be sent, and no line says what became of it: the instance was killed during the call, "
                "it is still running, or the line is not in this export. The invoice may exist."
            )
        case "step":
            return (
                f"It was under way: the step {line['step']} was {line['result']}, and no line says what came after. "
                "The invoice may exist, as a draft or finalized; the same call, sent again, goes on with it."
            )
        case "preview":
            foreseen = _FORESEEN.get(line.get("would"), "")
            return f"It was decided as any other call, and nothing was sent. {foreseen}{_why(line)}"
        case "look":
            return "It was told what it may do, and nothing was sent."
        case "replay":
            return "The answer of an earlier call with the same key was given again; nothing was sent."
        case "refusal":
            by = "It broke off after it may have been sent," if "intent" in line else "Countersign refused it"
            return f"{by} with {line['status']} {line['reason']}: {_quoted(line)}"
    match line["result"]:
        case Outcome.SUCCEEDED:
            return _created(line)
        case Outcome.UNKNOWN:
            note = f" ({line['note']})" if "note" in line else ""
            return f"It was sent, and nobody knows what became of it{note}. The caller was told: {_quoted(line)}"
    code = f" ({line['upstream_code']})" if "upstream_code" in line else ""
    status = f" with {line['upstream_status']}{code}" if "upstream_status" in line else ""
    return f"It was sent, and the upstream did not do it{status}. The caller was told: {_quoted(line)}"


#: What asks nothing of anybody, but for a preview with a reason.
_NOTHING: Final = frozenset({"preview", "replay", "look"})
_FORESEEN: Final[dict[str | None, str]] = {
    Would.SEND: "The call itself would have been sent.",
    Would.REPLAY: "The call itself would have got the answer of an earlier call with the same key.",
    Would.REFUSE: "The call itself would have been refused",
    Would.WAIT: "The call itself would have had to wait",
}


def _why(line: Content) -> str:
    return f" with {line['status']} {line['reason']}: {_quoted(line)}" if "reason" in line else ""


def _went_through(line: Content) -> bool:
    """Whether a call ended well. A step of a call that did is not the call."""
    return (line["kind"], line.get("result")) == ("outcome", Outcome.SUCCEEDED)


def _created(line: Content) -> str:
    operation = OPERATIONS.get(line["operation"])
    if "created" not in line:
        return f"It went through ({line['status']})."
    of = f" of {money(line['amount'], line['currency'])}" if "amount" in line else ""
    noun = operation.noun if operation is not None else "object"
    return (
        f"It went through: {noun} {line['created']}{of}. It is in the Stripe account behind {line['connection']}, "
        "and is found there by that id."
    )


def _quoted(line: Content) -> str:
    return " ".join(
        [f"\u201c{line['detail']}\u201d", *(f"Also: \u201c{other}\u201d" for other in line.get("others", ()))]
    )


def _of_the_key(told: Told) -> Iterator[str]:
    """Say what became of the key in other calls."""
    if _went_through(told.own[-1]):
        return
    done = [line for line in told.others if _went_through(line)]
    for line in done[-1:]:
        yield f"The invoice of this key was raised on {_time(line)} ({line['audit_id']}): {_created(line)}"
    decided = _decision(told)
    if decided is not None:
        yield f"On {_time(decided)}, {decided['by']} {_decided_what(decided)}."


def _decision(told: Told) -> Content | None:
    """Return the last decision of an operator about the key that took effect; None if there is none."""
    decisions: dict[str, Content] = {}  # by the instance that wrote them: each command is one
    for line in told.others:
        if line["kind"] == "resolution":
            decisions[line["instance"]] = line
        elif line["kind"] == "resolved" and line["verdict"] not in {Verdict.RESOLVED, Verdict.REOPENED}:
            decisions.pop(line["instance"], None)
    return next(reversed(decisions.values()), None)


def _decided_what(line: Content) -> str:
    if "takes_back" in line:
        return f"took a decision back ({line['takes_back']})"
    return f"decided: it created {line['created']}" if line["created"] else "decided: nothing was created"


def _next(line: Content, told: Told) -> Iterator[str]:
    """Say what to do next."""
    decided = _decision(told)
    by_word = decided is not None and "takes_back" not in decided and decided["time"] > line["time"]
    settled = by_word or any(_went_through(other) for other in told.others)
    unknown = (
        line["kind"] in {"intent", "step"}
        or line.get("result") == Outcome.UNKNOWN
        or line.get("reason") == "outcome-unknown"
    )
    if unknown and not settled:
        if told.ledger is None:
            yield "Next: look for it at the upstream. The call had no idempotency key, so no ledger knows of it."
        else:
            yield f"Next: ./countersign ledger show {told.ledger} says whether it is still open, and how to settle it."
    elif _went_through(line) and "warning" in line:
        yield "Next: see what the warning says. Only that is left to do."
    elif _went_through(line) or (line["kind"] in _NOTHING and "reason" not in line) or settled:
        yield "Nothing needs to be done."
    elif advice := _advice(line.get("reason")):
        yield f"Next: {advice}"


def _advice(reason: str | None) -> str:
    """Return what the page about refusals says to do about one."""
    if reason is None or not REFUSALS.exists():
        return ""
    section = re.search(rf"(?ms)^### {re.escape(reason)}\n(.*?)(?=^##|\Z)", REFUSALS.read_text("utf-8"))
    return " ".join(_LINK.sub(r"\1", section[1]).split()) if section is not None else ""


def _decider(reason: str) -> str:
    return next((kind.decided_by for kind in _kinds(Refusal) if kind.reason == reason), "countersign")


def _kinds(base: type[Refusal]) -> Iterator[type[Refusal]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


# ---------------------------------------------------------------- which rule


def _decided(line: Content, policy: Path | None) -> list[str]:
    """Say by which document the call was decided and, where that is at hand, by which line, and what would pass."""
    digest, by_policy = line.get("policy"), "reason" in line and _decider(line["reason"]) == "policy"
    if digest is None or ("reason" in line and not by_policy):
        return []
    if policy is None:
        return [f"The policy document {digest} decided; --policy FILE shows its line."] if by_policy else []
    try:
        data = opened(policy)
        policy_set = read(data, str(policy))
    except DocumentError as error:
        raise NoAnswerError(f"{policy}: it is no policy document that can be read ({error})") from None
    if not policy_set.digest.startswith(digest):
        return [f"{policy} is {policy_set.digest[:SHORT]}, and what decided is another document, {digest}."]
    said = []
    rule = None if compiled.recognised(data) else rule_of(data.decode(), line)
    if rule is not None:
        what = "What decided" if "reason" in line else "What grants it"
        said.append(f"{what} is line {rule[0]} of {policy}: `{rule[1]}`.")
    return said + _would_pass(policy_set, line)


def rule_of(text: str, line: Content) -> tuple[int, str] | None:
    """Return the number and the text of the line of a document that decided."""
    root: Any = yaml.compose(text.removeprefix("\ufeff"), Loader=LOADER)
    node = None
    for names in _places(line):
        node = _at(root, names, line)
        if node is not None:
            break
    if node is None:
        return None
    number = node.start_mark.line
    return number + 1, text.splitlines()[number].strip()


def _places(line: Content) -> Iterator[list[str]]:
    """Yield where in a document the rule may stand, the most exact first. ``*`` is the grant."""
    caller, connection, reason = line.get("caller"), line.get("connection"), line.get("reason", "")
    if caller is None:
        return
    grant = ["callers", caller, "grants", "*"]
    if reason == "ceiling-reached" and connection is not None:
        yield ["connections", connection, "ceiling"]
    if reason == "caller-paused":
        yield ["callers", caller, "paused"]
    if reason == "limit-reached":
        yield ["callers", caller, "limits"]
    if reason == "budget-spent":
        yield ["callers", caller, "budget"]
    if reason.startswith("idempotency-key-"):
        yield [*grant, "idempotency"]
    if reason.startswith("parameter-"):
        if "parameter" in line:
            yield [*grant, "parameters", line["parameter"]]
        yield [*grant, "parameters"]
    if reason == "account-not-granted" and connection is not None:
        yield ["connections", connection]
    yield grant
    yield ["callers", caller, "grants"]
    yield ["callers", caller]


def _at(node: Any, names: list[str], line: Content) -> Any:
    """Return the node of the key at the end of a path; None if there is none."""
    key = node
    for name in names:
        if name == "*":
            wanted = {"connection": line.get("connection"), "operation": line.get("operation")}
            node = next((item for item in getattr(node, "value", ()) if wanted.items() <= _texts(item).items()), None)
            key = node
        else:
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            key, node = next(((k, v) for k, v in pairs if k.value == name), (None, None))
        if node is None:
            return None
    return key


def _texts(node: Any) -> dict[str, Any]:
    return {key.value: value.value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _would_pass(policy_set: PolicySet, line: Content) -> list[str]:
    """Say what this caller may do, as far as the refusal is about it."""
    caller = next((one for one in policy_set.callers.values() if one.id == line.get("caller")), None)
    if caller is None or "reason" not in line:
        return []
    granted = [one for one in caller.entitlements.values() if one.connection.id == line.get("connection")]
    entitlement = next((one for one in granted if one.operation.id == line.get("operation")), None)
    said = _passes(line, caller, entitlement)
    return [f"What would pass: {said}."] if said else []


def _passes(line: Content, caller: Caller, entitlement: Entitlement | None) -> str | None:
    match line["reason"]:
        case "limit-reached":
            return " and ".join(limit_in_words(limit) for limit in caller.limits)
        case "budget-spent":
            return " and ".join(budget_in_words(budget) for budget in caller.budgets)
        case "connection-not-granted":
            grants = sorted(f"{one.operation.id} on {one.connection.id}" for one in caller.entitlements.values())
            return ", ".join(grants)
        case "parameter-not-granted" if entitlement is not None:
            return ", ".join(sorted(entitlement.rules))
        case "parameter-invalid" | "parameter-missing" if entitlement is not None:
            path = line.get("parameter", "")
            template = parameters.template_of(entitlement.operation, path) or path
            rule = entitlement.rules.get(path) or entitlement.rules.get(template)
            if rule is not None:
                bounds = ", ".join(f"{name} {bound}" for name, bound in parameters.accepts(rule).items())
                return f"{path} with {bounds}"
    return None


def _time(line: Content) -> str:
    moment = datetime.fromisoformat(line["time"]).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y} at {moment:%H:%M:%S} UTC"


def _shown(line: Content) -> str:
    return f"{line['time']}  {line['kind']:<10}  {line['audit_id']}  {line[MESSAGE]}"


def _printable(text: str) -> str:
    """Replace what a terminal would obey: an export may have been edited."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
