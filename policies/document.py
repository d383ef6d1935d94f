"""A policy document -> PolicySet, or an error that names file, line and key.

The document is YAML that states facts. Its format is described in ``docs/policy.md``; what is not written in it is
denied, and what cannot take effect (an unknown key, an unused connection, a limit that another makes unreachable) is
an error, since it must be a mistake.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec.structs import replace

from policies import forms, keynames, lines, parameters, quota, signing
from policies.callerkeys import ending
from policies.currencies import CURRENCIES
from policies.entitlements import entitlement
from policies.idempotency import RETENTION
from policies.model import (
    EACH,
    MODES,
    NAME,
    WHOLESALE,
    Amount,
    Budget,
    Caller,
    Connection,
    DocumentError,
    Effect,
    Entitlement,
    Idempotency,
    Kind,
    Limit,
    Lines,
    PolicySet,
    Proof,
    Risk,
    Rule,
    names_secret,
)
from policies.operations import OPERATIONS
from policies.refusals import BodyMalformed
from policies.suggestions import closest
from policies.upstreams import UPSTREAMS
from policies.wording import budget_in_words, money

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import Any

    from policies.model import Operation, Parameter

T = TypeVar("T")

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: As Google writes it in a token: in lower case.
_EMAIL = re.compile(r"(?=.{3,254}$)[a-z0-9._%+'-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_DURATION = re.compile(r"([1-9][0-9]{0,3})(h|d)")
#: Other characters of a token (RFC 9110, 5.6.2) do not reach us unchanged: servers fold or drop them.
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}[A-Za-z0-9]")
#: No comma, since a header sent twice arrives joined by one.
_PREFIX = re.compile(r"[!-+\--~][ -+\--~]{0,31}")
_PREFIX_HINT: Final = "write what stands before the signature, up to 32 printable characters without a comma"
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

#: The digest of an empty text, which a mistake in the shell produces.
_EMPTY_KEY: Final = hashlib.sha256(b"").digest()

#: A signed webhook does not name its caller, so every secret that could have signed it is tried.
MAX_SIGNERS: Final = 16

#: The format needs 8. libyaml crashes the process on very deep nesting.
_MAX_DEPTH: Final = 16

#: libyaml reads a large document about ten times as fast; the pure one reads the same documents.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_BYTE_ORDER_MARK: Final = "\ufeff"
_NULL: Final = "tag:yaml.org,2002:null"
#: What YAML reads as null if it is written without quotes.
_NOTHING: Final = frozenset({"", "~", "null", "Null", "NULL"})


# A large document has a million of these, none of them in a cycle: garbage collection would take most of the time.
class _Scalar(msgspec.Struct, gc=False):
    line: int
    value: str
    null: bool


class _List(msgspec.Struct, gc=False):
    line: int
    start: int
    """Its first index in the text; ``end`` is the index after its last."""
    value: list[_Node]
    end: int = 0


class _Object(msgspec.Struct, gc=False):
    line: int
    start: int
    value: list[_Node]
    """Keys and values by turns."""
    end: int = 0


_Node = _Scalar | _List | _Object


class _Value:
    """A node of the document, with its file, line and path."""

    __slots__ = ("file", "line", "node", "path")

    def __init__(self, file: str, node: _Node, path: str, line: int | None = None) -> None:
        self.file, self.node, self.path = file, node, path
        self.line = node.line if line is None else line

    def fail(self, problem: str) -> DocumentError:
        return DocumentError(f"{self.file}:{self.line}: {self.path}: {problem}")

    @property
    def empty(self) -> bool:
        return isinstance(self.node, _Scalar) and self.node.null

    def mapping(self, known: Collection[str] = (), required: Collection[str] = ()) -> dict[str, _Value]:
        """Read an object. With ``known``, any other key is an error; with ``required``, a missing one is."""
        if not isinstance(self.node, _Object):
            raise self.fail("write an object here: key: value")
        values: dict[str, _Value] = {}
        written = iter(self.node.value)
        for key_node in written:
            line = key_node.line
            if not isinstance(key_node, _Scalar):
                raise DocumentError(f"{self.file}:{line}: {self.path}: a key must be plain text")
            key = key_node.value
            value = _Value(self.file, next(written), f"{self.path}.{key}" if self.path else key, line)
            if key in values:
                raise value.fail("this key is written twice")
            if known and key not in known:
                raise value.fail(f"no such key. {_suggest(key, known)}")
            values[key] = value
        for key in required:
            if key not in values:
                raise self.fail(f"{key} is missing")
        return values

    def items(self) -> Iterator[_Value]:
        """Read a list that is not empty."""
        if not isinstance(self.node, _List):
            raise self.fail("write a list here: [one, another]")
        if not self.node.value:
            raise self.fail("this list is empty")
        for index, node in enumerate(self.node.value):
            yield _Value(self.file, node, f"{self.path}[{index}]")

    def text(self, pattern: re.Pattern[str] | None = None, hint: str = "") -> str:
        """Read a scalar as it is written, without YAML's interpretation of ``no`` or ``1e3``."""
        if not isinstance(self.node, _Scalar) or self.empty or not self.node.value:
            raise self.fail(hint or "write a text here")
        value = self.node.value
        if pattern is not None and not pattern.fullmatch(value):
            raise self.fail(hint)
        return value

    def one_of(self, values: Collection[str]) -> str:
        value = self.text()
        if value not in values:
            raise self.fail(_suggest(value, values))
        return value

    def integer(self) -> int:
        return int(self.text(re.compile(r"-?[0-9]{1,15}"), "write a whole number here"))

    def boolean(self) -> bool:
        return self.one_of(("true", "false")) == "true"

    def limit(self) -> Limit:
        try:
            return quota.parse_limit(self.text())
        except ValueError as error:
            raise self.fail(str(error)) from None


def read(text: str, file: str) -> PolicySet:
    """Read a document. ``file`` is what errors call it. Raises :class:`DocumentError`."""
    root = _Value(file, _compose(text, file), "")
    if not isinstance(root.node, _Object):
        raise DocumentError(f"{file}:1: the document must be an object with connections and callers")
    top = root.mapping(known=("connections", "callers"))
    for key in ("connections", "callers"):
        if key not in top:
            raise DocumentError(f"{file}:1: {key}: this key is missing")
    connections = _connections(top["connections"])
    callers = top["callers"].mapping()
    known, grants = _Credentials(callers, connections), _Grants(text, connections)
    used: set[str] = set()
    if not callers:
        raise top["callers"].fail("no caller is written, so nobody could call")
    for name, value in callers.items():
        _name(value, name)
        _caller(name, value, grants, known, used)
    for name, value in top["connections"].mapping().items():
        if name not in used:
            raise value.fail("no grant uses this connection. Grant it to a caller, or remove it")
    return PolicySet(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        connections=connections,
        callers=known.callers,
        names=frozenset(callers),
        kinds=frozenset(proof.kind for proof in known.callers),
        signers={place: tuple(proofs) for place, proofs in known.signers.items()},
        signature_headers=signing.headers(known.callers),
    )


def warnings(text: str, file: str, now: float) -> list[str]:
    """Say of each key of a valid document that it has expired, or that it ends soon and no other follows.

    ``now`` is in unix seconds. What comes back is like an error's text: file, line, key and what to do.
    """
    warned: list[str] = []
    for name, caller in _Value(file, _compose(text, file), "").mapping()["callers"].mapping().items():
        written = [credential.mapping() for credential in caller.mapping()["credentials"].items()]
        keys = {key["id"].text(): key for key in (kinds["key"].mapping() for kinds in written if "key" in kinds)}
        ends = {one: _expiry(key["expires"]) if "expires" in key else inf for one, key in keys.items()}
        for one, says in ending(ends, name, now):
            rotate = f"./countersign key rotate {name} {one} --policy {file}"
            warned.append(str(keys[one]["expires"].fail(f"warning: {says}. Make another: {rotate}")))
    return warned


def _compose(text: str, file: str) -> _Node:
    mark = text.find(_BYTE_ORDER_MARK, 1)
    if mark > 0:
        line = text.count("\n", 0, mark) + 1
        raise DocumentError(
            f"{file}:{line}: a byte order mark stands here, which no editor shows: a file begins with it that was put "
            "behind another. Delete the line and write it anew"
        )
    try:
        root = _composed(yaml.parse(text, Loader=LOADER), file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise DocumentError(f"{file}:{line}: this is not YAML: {error.problem}. {_hint(text, line)}") from None
    except (yaml.YAMLError, RecursionError):
        raise DocumentError(f"{file}:1: this is not YAML") from None
    if root is None:
        raise DocumentError(f"{file}:1: the document is empty")
    return root


def _hint(text: str, line: int) -> str:
    """Say what is most often wrong with a line that is not YAML. Lines are counted from 1."""
    near = ["", *text.splitlines()][line - 1 : line + 1]
    if "\t" in "".join(near[1:]):
        return "There is a tab in this line: write spaces"
    if "\N{NO-BREAK SPACE}" in "".join(near):  # which begins a text that goes on into the next line
        return "There are no-break spaces here, as web pages have them: write plain spaces"
    return 'Between [ ] or { }, write a name that has brackets in quotes: "metadata[order_id]"'


def _composed(events: Iterator[yaml.Event], file: str) -> _Node | None:
    """Build the node tree from parser events, rejecting anchors and deep nesting as we go."""
    documents: list[_Node] = []
    into, around = documents, []
    for event in events:
        mark: Any = event.start_mark
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors (&) and aliases (*) are not part of the format"
        elif isinstance(event, yaml.ScalarEvent):
            null = event.tag == _NULL or (event.tag is None and event.implicit[0] and event.value in _NOTHING)
            into.append(_Scalar(mark.line + 1, event.value, null))
        elif isinstance(event, yaml.CollectionStartEvent):
            new = (_Object if isinstance(event, yaml.MappingStartEvent) else _List)(mark.line + 1, mark.index, [])
            into.append(new)
            around.append((new, into))
            into = new.value
            problem = "the document is nested too deeply" if len(around) > _MAX_DEPTH else None
        elif isinstance(event, yaml.CollectionEndEvent):
            ended, into = around.pop()
            mark = event.end_mark
            ended.end = mark.index
        elif isinstance(event, yaml.DocumentStartEvent) and documents:
            problem = "this is not YAML: another document begins here. Write one in a file"
        if problem is not None:
            raise DocumentError(f"{file}:{mark.line + 1}: {problem}")
    return documents[0] if documents else None


def _suggest(word: str, known: Collection[str]) -> str:
    close = closest(word, known)
    return f"Did you mean {close}?" if close else f"Write one of: {', '.join(sorted(known))}"


def _name(value: _Value, name: str) -> str:
    if not NAME.fullmatch(name):
        raise value.fail("a name is up to 64 letters, digits, dots, dashes and underscores")
    return name


# ---------------------------------------------------------------- connections


def _connections(value: _Value) -> dict[str, Connection]:
    connections: dict[str, Connection] = {}
    accounts: dict[tuple[str, str], str] = {}
    entries = value.mapping()
    for name, entry in entries.items():
        connection = _connection(_name(entry, name), entry)
        other = accounts.setdefault((connection.name, connection.connection_name), name)
        if other != name:
            raise entry.fail(f"{other} has the same name and connection_name; a call could mean either")
        connections[name] = connection
    for name, connection in connections.items():
        keys = entries[name].mapping()
        if "formerly" in keys:
            _formerly(keys["formerly"], connection.first, name, accounts)
    if not connections:
        raise value.fail("no connection is written, so nothing could be called")
    return connections


def _formerly(value: _Value, first: T, name: str, owners: dict[T, str]) -> None:
    """Take a first name for ``name``, unless it is or was another's. ``owners`` says whose each name is."""
    still = owners.get(first) == name
    owner = owners.setdefault(first, name)
    if owner != name:
        raise value.fail(f"this is or was the name of {owner}, and what is kept under it is not {name}'s")
    if still:
        raise value.fail("this is its name still. Remove the key, or write the name that it had first")


def _connection(name: str, entry: _Value) -> Connection:
    required = ("name", "connection_name", "upstream", "secret")
    particular = {key for dialect in UPSTREAMS.values() for key in dialect.settings}
    keys = entry.mapping(
        known=(*required, "origin", "ceiling", "private", "mode", "formerly", *particular), required=required
    )
    hint = "write the name that callers send: letters, digits, dots, dashes and underscores"
    dialect = UPSTREAMS[keys["upstream"].one_of(UPSTREAMS)]
    if "origin" not in keys and dialect.origin is None:
        raise entry.fail("origin is missing")
    for key in sorted(particular & keys.keys() - dialect.settings.keys()):
        where = " and ".join(other.title for other in UPSTREAMS.values() if key in other.settings)
        raise keys[key].fail(f"{key} means something at {where} only. Remove it")
    settings = {
        key: keys[key].text(re.compile(setting.pattern), setting.hint) if key in keys else setting.default
        for key, setting in dialect.settings.items()
    }
    now = keys["name"].text(NAME, hint), keys["connection_name"].text(NAME, hint)
    first = now
    if "formerly" in keys:
        were = keys["formerly"].mapping(known=required[:2], required=required[:2])
        first = were["name"].text(NAME, hint), were["connection_name"].text(NAME, hint)
    connection = Connection(
        id=name,
        name=now[0],
        connection_name=now[1],
        upstream=dialect.id,
        origin=_origin(keys["origin"]) if "origin" in keys else dialect.origin or "",
        secret=_secret(keys["secret"]),
        ceiling=keys["ceiling"].limit() if "ceiling" in keys else None,
        private=keys["private"].boolean() if "private" in keys else False,
        first=first,
        mode=keys["mode"].one_of(MODES) if "mode" in keys else "",
        settings={key: value for key, value in settings.items() if value is not None},
    )
    return replace(connection, place=dialect.place(connection))


def _origin(value: _Value) -> str:
    origin = value.text()
    hint = "write the origin alone, such as https://us-central1-appgregator.cloudfunctions.net, without a path"
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise value.fail(hint) from None
    if not host or not _HOST.fullmatch(host):
        raise value.fail(hint)
    netloc = f"[{host}]" if ":" in host else host
    if parts.scheme not in {"https", "http"} or origin != f"{parts.scheme}://{netloc}{f':{port}' if port else ''}":
        raise value.fail(hint)
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise value.fail("write https: the key must not travel in the clear (http is for loopback only)")
    return origin


def _secret(value: _Value) -> str:
    text = value.text()
    if not names_secret(text):
        raise value.fail(
            "write where the key lies: projects/PROJECT/secrets/NAME/versions/latest (of a regional secret "
            "projects/PROJECT/locations/REGION/secrets/NAME/versions/latest), or file:PATH of a mounted one"
        )
    return text


def _versionless(secret: str) -> bytes:
    """Return where a secret lies, whatever its version."""
    return secret.partition("/versions/")[0].encode()


# ---------------------------------------------------------------- callers


class _Written(NamedTuple):
    """A credential as a document writes it."""

    proof: bytes
    name: str
    """What the record calls it."""
    expires: float | None = None
    tied: _Value | None = None
    """The connection that it is tied to."""
    alone: bytes | None = None
    """What no other caller may have, if that is not the whole proof."""
    scheme: str | None = None
    """The kind of the proof, if that is not the kind of the credential."""


class _Kind(NamedTuple):
    """How a kind of credential is written."""

    read: Callable[[_Value], _Written]
    taken: str
    """The error if another caller has the same one."""
    signs: bool = False
    """Whether it does not name its caller, so that all possible signers are tried."""


class _Credentials:
    """The credentials and names of all callers as they are read. Each belongs to one caller, once."""

    def __init__(self, names: Iterable[str], connections: Mapping[str, Connection]) -> None:
        self.names = {name: name for name in names}
        """Which caller has each name, or had it first."""
        self.callers: dict[Proof, Caller] = {}
        self.signers: dict[tuple[str, str], list[Proof]] = {}
        self._owners: dict[Proof, Caller] = {}
        self._keys = {_versionless(one.secret): name for name, one in connections.items()}
        """Whose key lies where, by the secret's place without its version."""

    def add(self, value: _Value, kind: str, written: _Written, caller: Caller) -> None:
        taken, signs = _KINDS[kind].taken, _KINDS[kind].signs
        proof = Proof(written.scheme or kind, written.proof)
        whose = self._keys.get(written.alone or b"")
        if whose is not None:
            raise value.fail(
                f"here lies the upstream's key of {whose}, which whoever signs with it would hold. Make a secret of "
                "its own for this caller"
            )
        owner = self._owners.setdefault(Proof(kind, written.alone or written.proof), caller)
        if owner.id != caller.id or (owner is not caller and not signs):
            raise value.fail(taken.format(proof=written.proof.decode("latin-1"), owner=owner.id))
        if proof in self.callers:
            raise value.fail("this secret is written twice")
        self.callers[proof] = caller
        for place in _places(caller) if signs else ():
            signers = self.signers.setdefault(place, [])
            signers.append(proof)
            if len(signers) > MAX_SIGNERS:
                raise value.fail(
                    f"more than {MAX_SIGNERS} secrets could sign for one connection, and each is tried. Remove those "
                    "that are no longer used, or give some of these callers a key instead"
                )


def _places(caller: Caller) -> set[tuple[str, str]]:
    """Return what a credential may use, as (name, connection_name)."""
    if caller.tied is not None:
        return {(caller.tied.name, caller.tied.connection_name)}
    return {(name, account) for name, account, _ in caller.entitlements}


def _caller(
    name: str,
    value: _Value,
    grants: _Grants,
    known: _Credentials,
    used: set[str],
) -> None:
    required = ("owner", "credentials", "limits", "grants")
    entry = value.mapping(known=(*required, "budget", "paused", "formerly"), required=required)
    first = name
    if "formerly" in entry:
        first = _name(entry["formerly"], entry["formerly"].text())
        _formerly(entry["formerly"], first, name, known.names)
    owner = entry["owner"].text()
    entitlements: dict[tuple[str, str, str], Entitlement] = {}
    for grant in entry["grants"].items():
        one = grants.read(grant)
        connection = one.connection
        place = (connection.name, connection.connection_name, one.operation.id)
        if place in entitlements:
            raise grant.fail(f"{connection.id} and {one.operation.id} are granted twice; write one grant")
        entitlements[place] = one
        used.add(connection.id)
    granted = {one.connection.id: one.connection for one in entitlements.values()}
    limits = _limits(entry["limits"], granted.values())
    budgets = _budgets(entry, entitlements, limits) if "budget" in entry else ()
    paused = entry["paused"].boolean() if "paused" in entry else False

    credentials = [(credential, *_credential(credential)) for credential in entry["credentials"].items()]
    if any(written.scheme == signing.HMAC for *_, written in credentials):
        entitlements = {place: _kept_longer(one) for place, one in entitlements.items()}
    names: set[str] = set()
    for credential, kind, said, written in credentials:
        tied = _tied(name, written.tied, granted) if written.tied is not None else None
        signed = written.scheme == signing.HMAC
        if signed:
            tied = _covered(name, said, tied, entitlements.values())
        caller = Caller(
            name, first, owner, written.name, written.expires, limits, budgets, entitlements, tied, paused, signed
        )
        known.add(said if isinstance(said.node, _Scalar) else credential, kind, written, caller)
        if written.name in names:
            raise credential.fail(f"the id {written.name} is used twice")
        names.add(written.name)


def _credential(value: _Value) -> tuple[str, _Value, _Written]:
    kinds = value.mapping(known=_KINDS)
    if len(kinds) != 1:
        raise value.fail(f"write one kind of credential in each entry: {_either(_KINDS)}")
    [(kind, said)] = kinds.items()
    return kind, said, _KINDS[kind].read(said)


def _covered(caller: str, value: _Value, tied: Connection | None, granted: Collection[Entitlement]) -> Connection:
    """Return the connection that a signature over the body alone is good for.

    It does not cover the address, so whoever has seen a call could send its body to another connection or operation.
    """
    connections = {one.connection.id: one.connection for one in granted}
    if tied is None and len(connections) > 1:
        raise value.fail(
            f"what is signed does not name the connection, and {caller} may use several. Write the one that these "
            f"calls are for, such as connection: {next(iter(connections))}"
        )
    connection = tied or next(iter(connections.values()))
    covered = [one.operation.id for one in granted if one.connection is connection and signing.covers(one.operation)]
    if not covered:
        raise value.fail(
            f"only the body is signed, and {caller} has no grant on {connection.id} whose calls say all in their body, "
            "such as invoices.create"
        )
    if len(covered) > 1:
        raise value.fail(
            f"what is signed does not name the operation, and {caller} may use several on {connection.id}: "
            f"{', '.join(covered)}. Give these calls a caller of their own, with one of them"
        )
    return connection


def _kept_longer(one: Entitlement) -> Entitlement:
    """Keep answers for as long as a signature without a time needs."""
    if one.operation.repeatable or one.idempotency.seconds >= signing.UNDATED_SECONDS:
        return one
    return replace(one, idempotency=replace(one.idempotency, seconds=signing.UNDATED_SECONDS))


def _either(words: Collection[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _tied(caller: str, value: _Value, granted: Mapping[str, Connection]) -> Connection:
    """Read the connection that a credential is tied to, one of those that are granted to its caller."""
    name = value.text()
    if name not in granted:
        raise value.fail(f"no grant of {caller} is for this connection. {_suggest(name, granted)}")
    return granted[name]


def _key(value: _Value) -> _Written:
    entry = value.mapping(known=("id", "sha256", "expires", "connection"), required=("id", "sha256"))
    digest = bytes.fromhex(
        entry["sha256"].text(_SHA256, "write the key's SHA-256, 64 small hexadecimal digits; never the key itself")
    )
    if digest == _EMPTY_KEY:
        raise entry["sha256"].fail("this is the digest of an empty text, so the key got lost on the way")
    expires = _expiry(entry["expires"]) if "expires" in entry else None
    return _Written(digest, _name(entry["id"], entry["id"].text()), expires, entry.get("connection"))


def _google(value: _Value) -> _Written:
    entry = {"email": value}
    if isinstance(value.node, _Object):
        entry = value.mapping(known=("email", "connection"), required=("email", "connection"))
    email = entry["email"].text(
        _EMAIL, "write the e-mail address of a service account or a person, in lowercase letters as Google does"
    )
    return _Written(email.encode(), f"google:{email}", tied=entry.get("connection"))


def _webhook(value: _Value) -> _Written:
    entry = {"secret": value}
    if isinstance(value.node, _Object):
        required = ("secret", "scheme", "header", "encoding")
        entry = value.mapping(known=(*required, "prefix", "connection"), required=required)
    secret = _secret(entry["secret"])
    # Whatever its version: two callers with one secret could not be told apart.
    written = _Written(secret.encode(), f"webhook:{secret}", alone=_versionless(secret))
    if "scheme" not in entry:
        return written
    entry["scheme"].one_of((signing.HMAC,))
    proof = signing.proof_of(
        signing.Signing(
            secret=secret,
            header=_signature_header(entry["header"]),
            encoding=entry["encoding"].one_of(signing.ENCODINGS),
            prefix=entry["prefix"].text(_PREFIX, _PREFIX_HINT) if "prefix" in entry else "",
        )
    )
    return written._replace(proof=proof.value, scheme=proof.kind, tied=entry.get("connection"))


def _signature_header(value: _Value) -> str:
    header = value.text(_HEADER, "write the name of a header: up to 64 letters, digits and dashes")
    if header.lower() in signing.TAKEN:
        raise value.fail(f"{header} means something else already. Write the header that the signature arrives in")
    return header.lower()


_KINDS: Final = {
    "key": _Kind(_key, "this key is also a key of {owner}; every key belongs to one caller, once"),
    "google": _Kind(_google, "{proof} is also an identity of {owner}; every identity belongs to one caller, once"),
    "webhook": _Kind(_webhook, "this is also a secret of {owner}; make one for each caller", signs=True),
}


def _expiry(value: _Value) -> float:
    hint = "write a date, 2027-03-01 (the key stops working as that day begins, UTC), or 2027-03-01T12:00:00Z"
    text = value.text(re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d))?", re.ASCII), hint)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise value.fail(hint) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _limits(value: _Value, connections: Collection[Connection]) -> tuple[Limit, ...]:
    limits: list[Limit] = []
    for item in value.items():
        limit = item.limit()
        if any(limit.seconds == other.seconds for other in limits):
            raise item.fail(f"there is a limit for the same time already; keep the one you mean, {limit.text} or it")
        limits.append(limit)
    for item, limit in zip(value.items(), limits, strict=True):
        for other in limits:
            if other is not limit and _most(other, limit.seconds) <= limit.calls:
                raise item.fail(f"{limit.text} can never be reached, since {other.text} is stricter. Remove it")
        ceilings = [connection.ceiling for connection in connections]
        most = sum(_most(ceiling, limit.seconds) for ceiling in ceilings if ceiling is not None)
        if None not in ceilings and most <= limit.calls:
            raise item.fail(f"{limit.text} can never be reached, since the connection's ceiling is stricter. Lower it")
    return tuple(limits)


#: A place among a caller's grants, and what is granted there.
_Places = dict[tuple[str, str, str], Entitlement]


def _budgets(entry: Mapping[str, _Value], granted: _Places, limits: Collection[Limit]) -> tuple[Budget, ...]:
    """Read a budget or a list of them, each of which must be able to bind what these grants spend."""
    value, grants = entry["budget"], [*zip(entry["grants"].items(), granted.values(), strict=True)]
    written = [value] if isinstance(value.node, _Object) else [*value.items()]
    spending = [pair for pair in grants if pair[1].operation.spends_at(pair[1].connection.upstream)]
    if not spending:
        raise value.fail(f"no grant of this caller asks anybody for money, so this could never bind. {_SPENT}")
    for _, one in grants:
        collects = [path for path in _UNBOUND if (rule := one.rules.get(path)) and rule.fixed != "false"]
        if collects and not one.operation.spends_at(one.connection.upstream):
            raise value.fail(
                f"{one.operation.id} on {one.connection.id} may set {collects[0]}, by which Stripe finalizes the draft "
                f"without us, so this would not count it. Take {collects[0]} out of that grant. {_SPENT}"
            )
    budgets = [_budget(item) for item in written]
    for item, budget in zip(written, budgets, strict=True):
        _bindable(item, budget, [other for other in budgets if other is not budget])
        _counts(item, budget, spending, limits)
        if budget.each is not None and not any(one.currency == budget.currency and one.each is None for one in budgets):
            _few(item, budget, [one for _, one in grants])
    for grant, one in spending:
        if _at_most(one) and (one.amount is None or one.amount.max is None):
            raise grant.fail(
                f"a call of {one.operation.id} does not say for sure what it comes to, and the budget counts it "
                "beforehand. Write what one may come to, in minor units, such as amount: {max: 50000}"
            )
    return tuple(budgets)


#: What is written in place of a budget that could never bind.
_SPENT: Final = (
    "A create at Stripe makes a draft of 0, and a budget counts what is finalized: grant invoices.issue, or "
    "invoices.finalize for drafts, or remove the budget"
)
#: Parameters by which Stripe finalizes a draft by itself.
_UNBOUND: Final = ("auto_advance", "automatically_finalizes_at")


def _at_most(one: Entitlement) -> bool:
    """Whether a call of a grant may not say what it comes to, so that its ``amount.max`` is reserved."""
    named = one.operation.whole or all(path in one.required or path in one.fixed for path in ("amount", "currency"))
    return not named or lines.varies(one.rules)


def _budget(value: _Value) -> Budget:
    required = ("currency", "amount", "per")
    entry = value.mapping(known=(*required, "each"), required=required)
    currency = _currency(entry["currency"])
    amount = entry["amount"].integer()
    if amount < 1:
        raise entry["amount"].fail("write an amount in minor units (cents), 1 or more")
    per = entry["per"].one_of(("hour", "day"))
    each = entry["each"].one_of(EACH) if "each" in entry else None
    return Budget(currency, Limit(amount, quota.UNITS[per], f"{amount} {currency}/{per}"), each)


def _bindable(value: _Value, budget: Budget, others: Collection[Budget]) -> None:
    """Refuse a budget that another makes unreachable, or that counts the same."""
    for other in others:
        if other.currency != budget.currency:
            continue
        same = (other.limit.seconds, other.each) == (budget.limit.seconds, budget.each)
        if same:
            raise value.fail("two budgets count the same: one currency, one time, the same each. Keep the one you mean")
        if other.each in {None, budget.each} and _most(other.limit, budget.limit.seconds) <= budget.limit.calls:
            raise value.fail(
                f"{budget_in_words(budget)} can never be reached, since {budget_in_words(other)} is stricter. Remove it"
            )


def _counts(
    value: _Value,
    budget: Budget,
    spending: Collection[tuple[_Value, Entitlement]],
    limits: Collection[Limit],
) -> None:
    """Refuse a budget that counts nothing of what these grants spend, or that no call of one could pass."""
    counted = [pair for pair in spending if _may_be_in(pair[1], budget.currency)]
    if not counted:
        raise value.fail(
            f"no grant of this caller raises invoices in {budget.currency}, so this could never bind. Write the "
            "currency that they are in, or remove the budget"
        )
    most = 0
    for grant, one in counted:
        if budget.each is not None and budget.each not in one.required and budget.each not in one.fixed:
            raise value.fail(
                f"calls of {one.operation.id} on {one.connection.id} need not name the {budget.each}, so this could "
                f"not count them. Write {budget.each}: {{required: true}} there, or leave out each"
            )
        largest = one.amount.max if one.amount is not None else None
        if largest is not None and _at_most(one) and largest > budget.limit.calls:
            raise grant.fail(
                f"every call reserves amount.max, {money(largest, budget.currency)}, and the budget is "
                f"{budget_in_words(budget)}, so no call could pass. Lower amount.max, or write a larger budget"
            )
        smallest = _smallest(one, budget.currency)
        if smallest > budget.limit.calls:
            raise value.fail(
                f"{budget_in_words(budget)} has no room for one invoice: a call of {one.operation.id} comes to "
                f"{money(smallest, budget.currency)} at least, so none could pass. Write a larger budget"
            )
        most = max(most, largest if largest is not None else budget.limit.calls + 1)
    calls = min(_most(limit, budget.limit.seconds) for limit in limits)
    if calls * most <= budget.limit.calls:
        raise value.fail(
            f"{budget_in_words(budget)} can never be reached: the limits let {calls:,} invoices through in that time, "
            f"of {money(most, budget.currency)} at most. Write a smaller budget, or remove it"
        )


def _few(value: _Value, budget: Budget, granted: Collection[Entitlement]) -> None:
    """Refuse a budget for each customer, and none for all, where the caller can make customers as it likes."""
    counted = {one.connection.place for one in granted if one.operation.spends_at(one.connection.upstream)}
    for one in granted:
        creates = one.operation.effect is Effect.CREATES and one.operation.noun == budget.each
        if creates and one.connection.place in counted:
            raise value.fail(
                f"this caller may also use {one.operation.id}, and each new {budget.each} has a budget of its own, so "
                f"this bounds nothing. Write one in {budget.currency} without each beside it, or take "
                f"{one.operation.id} out"
            )


def _smallest(one: Entitlement, currency: str) -> int:
    """Return the least that a call of a grant may come to in a currency, in minor units, as far as the policy says."""
    least = lines.least(currency)
    if _at_most(one) or (one.lines is not None and one.lines.credit):
        return least
    if one.lines is not None:
        return max(least, min(lines.smallest(one.rules, way) for way in lines.SUMS))
    return max(least, int(one.fixed.get("amount") or one.rules["amount"].minimum or 1))


def _currencies(one: Entitlement) -> list[str]:
    """Return the currencies that a grant names for its invoices; none if any will do."""
    rule = one.rules.get("currency")
    if rule is not None and rule.fixed is not None:
        return [rule.fixed]
    named = rule.one_of if rule is not None else None
    return sorted(named or (one.amount.currencies if one.amount is not None else ()))


def _may_be_in(one: Entitlement, currency: str) -> bool:
    """Whether a grant may raise an invoice in this currency."""
    rule = one.rules.get("currency")
    if rule is not None and (rule.fixed or currency) != currency:
        return False
    if rule is not None and rule.one_of is not None and currency not in rule.one_of:
        return False
    return one.amount is None or not one.amount.currencies or currency in one.amount.currencies


def _most(limit: Limit, seconds: int) -> int:
    """How many calls ``limit`` can let through in ``seconds``."""
    return limit.calls * max(1, seconds // limit.seconds)


# ---------------------------------------------------------------- grants


class _Grants:
    """The grants of all callers as they are read. Most are the same as another's, and are read only once."""

    def __init__(self, text: str, connections: Mapping[str, Connection]) -> None:
        self._text, self._connections = text, connections
        self._read: dict[str, Entitlement] = {}

    def read(self, value: _Value) -> Entitlement:
        # A grant is an object of several keys, so the same text has the same structure and meaning.
        written = self._text[value.node.start : value.node.end] if isinstance(value.node, _Object) else ""
        found = self._read.get(written)
        if found is None:
            found = self._read[written] = _entitlement(value, self._connections)
        return found


def _entitlement(value: _Value, connections: Mapping[str, Connection]) -> Entitlement:
    required = ("connection", "operation", "response")
    optional = ("idempotency", "groups", "parameters", "record", "stamp", "amount", "lines")
    entry = value.mapping(known=(*required, *optional), required=required)
    connection = connections[entry["connection"].one_of(connections)]
    operation = _operation(entry, connection)
    rules, required_paths = _parameters(entry, operation, connection.upstream)
    amount = _amount(entry["amount"], operation, connection.upstream) if "amount" in entry else None
    if amount is not None and "amount" in rules:
        _bounded(entry["amount"], rules, required_paths, amount)
    within = _lines(entry.get("lines"), rules, operation)
    if within is not None:
        _whole(value, rules, required_paths, amount, operation)
    elif "lines" in entry:
        raise entry["lines"].fail(f"{operation.id} has no lines. Grant invoices.issue, or remove this")
    if not rules:
        raise value.fail("this grant allows no parameter, so no call could pass. Name them under parameters")
    for part in operation.path.split("/"):
        if part.startswith("{") and part[1:-1] not in rules:
            raise value.fail(
                f"every call names {part[1:-1]} in its path, so none could pass. Grant it under parameters"
            )
    for path in parameters.needed(operation, ""):
        if path not in rules:
            raise value.fail(f"every call names {path}, so none could pass. Grant it under parameters")
        if rules[path].fixed is None and path not in required_paths:
            required_paths.append(path)
    one = entitlement(
        connection=connection,
        operation=operation,
        idempotency=_idempotency(entry.get("idempotency"), rules, operation),
        rules=rules.values(),
        required=tuple(required_paths),
        response=_response(entry["response"], operation),
        stamp=_stamp(entry["stamp"], rules, operation) if "stamp" in entry else None,
        record=_record(entry.get("record"), rules, operation),
        amount=amount,
        lines=within,
    )
    _refuse_in_vain(value, entry, one)
    return one


def _refuse_in_vain(value: _Value, entry: Mapping[str, _Value], one: Entitlement) -> None:
    """Refuse a grant whose parts do not go together: no call could pass, or not as the grant says."""
    written = entry["parameters"].mapping() if "parameters" in entry else {}
    always = {path for path, rule in one.rules.items() if rule.fixed is not None or rule.required}
    always |= {one.idempotency.parameter} if one.idempotency.parameter is not None else set()
    _refuse_never(entry.get("parameters", value), one.operation, always, one.stamp)
    for path in one.required:
        rule, parts = one.rules.get(path), any(part.startswith(f"{path}[") for part in one.rules)
        if not parts and (rule is None or rule.kind in {Kind.OBJECT, Kind.ARRAY}):
            raise written[path].fail(f"nothing can be sent in {path} but to clear it, so no call could pass. Remove it")
    if one.connection.upstream == "stripe":  # what another upstream adds to a call is not known
        _refuse_uncollected(written, one)
    if one.amount is not None and one.amount.max is not None:
        _refuse_too_little(entry["amount"], one, one.amount.max)
    if one.lines is not None and not one.lines.credit:
        _refuse_lines(written, one)


def _refuse_uncollected(written: Mapping[str, _Value], one: Entitlement) -> None:
    """Refuse a grant whose invoices could not be mailed as it says, or which Stripe would refuse every time.

    An invoice that the customer is sent has ``collection_method=send_invoice`` and says by when it is to be paid, and
    no other may say that (docs.stripe.com/api/invoices/create).
    """
    method = one.rules.get("collection_method")
    mails, due = _may(method, "send_invoice"), [path for path in lines.DUE if path in one.rules]
    needed = "collection_method: {fixed: send_invoice}, and days_until_due or due_date"
    if _may(one.rules.get("send"), "true") and not (mails and due):
        raise written["send"].fail(f"an invoice that is mailed needs what this grant does not allow. Grant {needed}")
    if mails and not due and _must(method, "send_invoice"):
        raise written["collection_method"].fail(
            "an invoice that the customer is sent says by when it is to be paid, so no call could pass. Grant "
            "days_until_due or due_date"
        )
    for path in due:
        rule = one.rules[path]
        if not mails and (rule.required or rule.fixed is not None):
            raise written[path].fail(
                f"{path} goes with collection_method=send_invoice, which this grant does not allow, so no call could "
                "pass. Grant collection_method: {fixed: send_invoice}"
            )


def _may(rule: Rule | None, value: str) -> bool:
    """Whether a call may send this value, or the policy does."""
    return rule is not None and parameters.fault(rule, value) is None


def _must(rule: Rule | None, value: str) -> bool:
    """Whether every call sends this value."""
    return rule is not None and (rule.fixed == value or (rule.required and rule.one_of == frozenset({value})))


def _refuse_too_little(value: _Value, one: Entitlement, most: int) -> None:
    """Refuse ``amount.max`` where it is less than what can be invoiced in a currency of the grant."""
    for currency in _currencies(one):
        least = lines.least(currency)
        if most < least:
            raise value.fail(
                f"the least that can be invoiced in {currency} is {money(least, currency)}, and max is "
                f"{money(most, currency)}. Raise max, or leave {currency} out"
            )


def _refuse_lines(written: Mapping[str, _Value], one: Entitlement) -> None:
    """Refuse bounds of a line that no line could pass, where none may lower the sum."""
    most = one.amount.max if one.amount is not None else None
    for way in lines.SUMS:
        for path in (f"lines[{{i}}][{way}]", "lines[{i}][quantity]"):
            greatest = one.rules[path].maximum
            if greatest is not None and greatest < 1:
                raise written[path].fail("write 1 or more: a line asks for something, so no value could pass")
        path, least = f"lines[{{i}}][{way}]", lines.smallest(one.rules, way)
        if most is not None and least > most:
            raise written[path if path in written else "lines[{i}][quantity]"].fail(
                f"a line with {way} comes to {least} at least, and amount.max is {most}, so none could pass. Raise max"
            )


def _parameters(entry: Mapping[str, _Value], operation: Operation, upstream: str) -> tuple[dict[str, Rule], list[str]]:
    """Return the rules of what a grant lets a caller send, and the paths that every call must send."""
    rules: dict[str, Rule] = {}
    required_paths: list[str] = []
    if "groups" in entry:
        rules.update(_groups(entry["groups"], operation, upstream))
    if "parameters" in entry:
        # Whole objects first, so that the entry of a part takes precedence wherever it is written.
        written = entry["parameters"].mapping().items()
        for path, bounds in sorted(written, key=lambda item: item[0].count("[")):
            for rule in _rules(path, bounds, operation, upstream):
                rules[rule.path] = rule
            if _if_written(_bounds(bounds), "required", _Value.boolean):
                required_paths.append(path)
    return rules, required_paths


def _amount(value: _Value, operation: Operation, upstream: str) -> Amount:
    if not operation.spends_at(upstream):
        raise value.fail(f"{operation.id} asks nobody for money at {upstream}, so this means nothing. Remove it")
    entry = value.mapping(known=("max", "currency"))
    most = entry["max"].integer() if "max" in entry else None
    if most is not None and most < 1:
        raise entry["max"].fail("write what one invoice may come to, in minor units, such as 50000 for 500.00")
    written = _once(entry["currency"]) if "currency" in entry else []
    return Amount(most, tuple(_currency(item) for item in written))


def _currency(value: _Value) -> str:
    currency = value.text(re.compile(r"[a-z]{3}"), "write a currency in lowercase letters, such as usd")
    if currency not in CURRENCIES:
        close = closest(currency, CURRENCIES)
        raise value.fail(
            f"there is no currency {currency}. {f'Did you mean {close}?' if close else 'Write one such as usd'}"
        )
    return currency


def _once(value: _Value) -> list[_Value]:
    """Read a list of plain texts in which each stands once."""
    seen: set[str] = set()
    items = [*value.items()]
    for item in items:
        if item.text() in seen:
            raise item.fail(f"{item.text()} is written twice")
        seen.add(item.text())
    return items


def _bounded(value: _Value, rules: dict[str, Rule], required: list[str], amount: Amount) -> None:
    """Bound what a call says that its invoice comes to, where it says so in one parameter."""
    rule = rules["amount"]
    if amount.max is not None:
        least = int(rule.fixed) if rule.fixed is not None else rule.minimum or 0
        if least > amount.max:
            raise value.fail(f"parameters.amount is {least} at least, so no call could pass. Raise max")
        if rule.fixed is None:
            rules["amount"] = replace(rule, maximum=min(amount.max, rule.maximum or amount.max))
    if not amount.currencies:
        return
    if "currency" not in rules:
        raise value.fail("a call that says an amount must say its currency. Grant currency under parameters")
    _in_currencies(value, rules, amount)
    if rules["currency"].fixed is None and "currency" not in required:
        required.append("currency")


def _in_currencies(value: _Value, rules: dict[str, Rule], amount: Amount) -> None:
    """Narrow the currency that a call may name to those of ``amount``."""
    currency = rules["currency"]
    named = {currency.fixed} if currency.fixed is not None else currency.one_of
    left = frozenset(amount.currencies) & (named or frozenset(amount.currencies))
    if not left:
        raise value.fail("parameters.currency allows none of these currencies, so no call could pass")
    if currency.fixed is None:
        rules["currency"] = replace(currency, one_of=left)


def _lines(value: _Value | None, rules: Mapping[str, Rule], operation: Operation) -> Lines | None:
    if not operation.whole:
        return None
    entry = value.mapping(known=("max", "credit")) if value is not None else {}
    most = entry["max"].integer() if "max" in entry else lines.MOST
    if not 1 <= most <= lines.MOST:
        raise entry["max"].fail(f"write how many lines an invoice may have, {lines.MOST} at most")
    credit = entry["credit"].boolean() if "credit" in entry else False
    if credit and any(path.startswith("automatic_tax") for path in rules):
        raise entry["credit"].fail("the upstream works out no tax over lines that lower the sum. Remove one of the two")
    return Lines(most, credit)


def _whole(
    value: _Value, rules: dict[str, Rule], required: list[str], amount: Amount | None, operation: Operation
) -> None:
    """Grant what every whole invoice names: its customer must be granted, its currency and its lines always are."""
    if "customer" not in rules:
        raise value.fail("every invoice has a customer. Grant it under parameters")
    for path in ("currency", *lines.ALWAYS):
        rules.setdefault(path, _catalogue_rule(path, operation.parameters[path]))
    if amount is not None and amount.currencies:
        _in_currencies(value, rules, amount)
    required += [path for path in ("customer", "currency") if rules[path].fixed is None and path not in required]


def _operation(entry: Mapping[str, _Value], connection: Connection) -> Operation:
    operation = OPERATIONS[entry["operation"].one_of(OPERATIONS)]
    upstream = connection.upstream
    if upstream not in operation.upstreams:
        offered = ", ".join(sorted(one.id for one in OPERATIONS.values() if upstream in one.upstreams))
        raise entry["operation"].fail(f"{upstream} does not offer this. Write one of: {offered}")
    for key in ("idempotency", "stamp"):
        if key in entry and operation.repeatable:
            raise entry[key].fail(f"{operation.id} creates nothing, so this means nothing here. Remove it")
    return operation


def _groups(value: _Value, operation: Operation, upstream: str) -> Iterator[tuple[str, Rule]]:
    names = {risk.value: risk for risk in Risk}
    for item in _once(value):
        risk = names[item.one_of(names)]
        if risk not in WHOLESALE:
            raise item.fail(f"a whole group that {risk.value} cannot be granted. Name its parameters one by one")
        for parameter in operation.parameters.values():
            if parameter.risk is risk and _sendable(parameter) and upstream in (parameter.upstreams or {upstream}):
                yield parameter.path, _catalogue_rule(parameter.path, parameter)


def _sendable(parameter: Parameter) -> bool:
    """Whether a value can be written at this path itself: an object's or list's only value is the unsetting one."""
    return parameter.kind not in {Kind.OBJECT, Kind.ARRAY} or parameter.unsets


def _catalogue_rule(path: str, parameter: Parameter) -> Rule:
    texts = parameter.kind is Kind.STRING and parameter.one_of is None
    return Rule(
        path=path,
        kind=parameter.kind,
        max_length=(parameter.max_length or parameters.MAX_LENGTH) if texts else None,
        one_of=None if parameter.one_of is None else frozenset(parameter.one_of),
        minimum=parameter.minimum,
        maximum=parameter.maximum,
        unsets=parameter.unsets,
        free=parameter.free,
    )


def _check_path(value: _Value, path: str) -> None:
    if "[]" in path:
        raise value.fail(f"{path} has empty brackets. Write what they hold, such as metadata[order_id]")
    try:
        forms.check_path(path)
    except BodyMalformed as refusal:
        raise value.fail(refusal.detail) from None


def _bounds(value: _Value) -> dict[str, _Value]:
    known = ("required", "max_length", "min", "max", "one_of", "prefix", "fixed")
    return {} if value.empty else value.mapping(known=known)


def _offered(path: str, value: _Value, operation: Operation, upstream: str) -> tuple[str, Parameter]:
    """Return a parameter that may be granted, and its path in the catalogue."""
    _check_path(value, path)
    if path in lines.OURS:
        raise value.fail(f"{path} is written by Countersign itself, to find its invoices again. Remove it")
    template = parameters.template_of(operation, path)
    if template is None:
        raise value.fail(f"{operation.id} has no such parameter. {_suggest(path, operation.parameters)}")
    _refuse_never(value, operation, {path})
    parameter = operation.parameters[template]
    if upstream not in (parameter.upstreams or {upstream}):
        where = " and ".join(UPSTREAMS[one].title for one in parameter.upstreams)
        raise value.fail(f"{path} means something at {where} only. At Stripe, grant invoices.issue and its lines")
    return template, parameter


def _rules(path: str, value: _Value, operation: Operation, upstream: str) -> Iterator[Rule]:
    """Yield the rules that one entry under ``parameters`` makes: one, or one for each part of an object."""
    template, parameter = _offered(path, value, operation, upstream)
    bounds = _bounds(value)
    if parameter.kind not in {Kind.OBJECT, Kind.ARRAY}:
        yield _narrowed(path, parameter, bounds, value)
        return
    below = [child for child in operation.parameters.values() if child.path.startswith(template + "[")]
    entries = [child for child in below if child.path in {f"{template}[{{i}}]", f"{template}[{{key}}]"}]
    simple = len(below) == 1 and len(entries) == 1  # a list or a free-key object of plain values
    if parameter.risk not in WHOLESALE and not simple and below:
        raise value.fail(
            f"this object {parameter.risk.value}, so its parts must be granted by name, such as "
            f"{next((child.path for child in below if _sendable(child)), template)}"
        )
    if not simple and set(bounds) - {"required"}:
        raise value.fail("only required can be said of a whole object. Name the part that you mean")
    if parameter.unsets:
        yield Rule(path, parameter.kind, unsets=True, required=_if_written(bounds, "required", _Value.boolean) or False)
    for child in below:
        if child.risk is parameter.risk and _sendable(child):
            suffix = child.path[len(template) :]
            if simple:
                entry_bounds = {key: bound for key, bound in bounds.items() if key != "required"}
                yield _narrowed(path + suffix, child, entry_bounds, value)
            else:
                yield _catalogue_rule(path + suffix, child)


def _narrowed(path: str, parameter: Parameter, bounds: Mapping[str, _Value], value: _Value) -> Rule:
    """Narrow the catalogue's bounds of one plain parameter by the policy's."""
    base = _catalogue_rule(path, parameter)
    number = parameter.kind in {Kind.INTEGER, Kind.TIMESTAMP}
    applies: dict[str, Callable[[], bool]] = {
        "max_length": lambda: parameter.kind is Kind.STRING,
        "prefix": lambda: parameter.kind is Kind.STRING,
        "min": lambda: number,
        "max": lambda: number,
    }
    for key, bound in bounds.items():
        if key in applies and not applies[key]():
            raise bound.fail(f"{key} cannot be said of {path}, whose kind is {parameter.kind.value}")
    if "fixed" in bounds and set(bounds) - {"fixed"}:
        raise bounds["fixed"].fail("a fixed value stands alone: the policy sends it whatever the caller does")
    if ("fixed" in bounds or "required" in bounds) and "{" in path:
        raise value.fail("this can only be said of one exact parameter, such as metadata[cost_center]")
    rule = Rule(
        path=path,
        kind=base.kind,
        max_length=_max_length(bounds, base),
        minimum=_minimum(bounds, base),
        maximum=_maximum(bounds, base),
        one_of=_one_of(bounds["one_of"], base) if "one_of" in bounds else base.one_of,
        prefix=_if_written(bounds, "prefix", _Value.text),
        required=_if_written(bounds, "required", _Value.boolean) or False,
        unsets=base.unsets,
        free=base.free,
    )
    _refuse_impossible(rule, bounds)
    for named in _named_currencies(bounds) if base.kind is Kind.CURRENCY else ():
        _currency(named)
    if "fixed" not in bounds:
        return rule
    fixed = bounds["fixed"].text()
    problem = parameters.fault(rule, fixed)
    if problem is not None:
        raise bounds["fixed"].fail(f"{path} {problem}")
    return Rule(path=path, kind=base.kind, fixed=fixed, free=base.free)


def _named_currencies(bounds: Mapping[str, _Value]) -> Iterator[_Value]:
    if "fixed" in bounds:
        yield bounds["fixed"]
    yield from bounds["one_of"].items() if "one_of" in bounds else ()


def _if_written(bounds: Mapping[str, _Value], key: str, read_as: Callable[[_Value], T]) -> T | None:
    return read_as(bounds[key]) if key in bounds else None


def _refuse_impossible(rule: Rule, bounds: Mapping[str, _Value]) -> None:
    """Refuse bounds that no value could pass: they must be a mistake."""
    if rule.minimum is not None and rule.maximum is not None and rule.minimum > rule.maximum:
        if "min" not in bounds:
            raise bounds["max"].fail(f"the upstream takes {rule.minimum} at least, so no value could pass")
        if "max" not in bounds:
            raise bounds["min"].fail(f"the upstream takes {rule.maximum} at most, so no value could pass")
        raise bounds["min"].fail("min is larger than max, so no value could pass")
    if rule.prefix is not None and rule.max_length is not None and len(rule.prefix) > rule.max_length:
        raise bounds["prefix"].fail("the prefix is longer than max_length, so no value could pass")
    for text in sorted(rule.one_of or ()) if "one_of" in bounds else ():
        problem = parameters.fault(rule, text)
        if problem is not None:
            raise bounds["one_of"].fail(f"{text} could never be sent: {rule.path} {problem}")
    if rule.one_of and all(parameters.fault(rule, text) for text in rule.one_of):
        bound = bounds["prefix" if "prefix" in bounds else "max_length"]
        raise bound.fail("the upstream takes nothing like it, so no value could pass")


def _minimum(bounds: Mapping[str, _Value], base: Rule) -> int | None:
    least = _if_written(bounds, "min", _Value.integer)
    if least is not None and base.minimum is not None and least < base.minimum:
        raise bounds["min"].fail(f"the upstream takes {base.minimum} at least")
    return base.minimum if least is None else least


def _maximum(bounds: Mapping[str, _Value], base: Rule) -> int | None:
    most = _if_written(bounds, "max", _Value.integer)
    if most is not None and base.maximum is not None and most > base.maximum:
        raise bounds["max"].fail(f"the upstream takes {base.maximum} at most")
    return base.maximum if most is None else most


def _max_length(bounds: Mapping[str, _Value], base: Rule) -> int | None:
    if "max_length" not in bounds:
        return base.max_length
    length = bounds["max_length"].integer()
    if length < 1:
        raise bounds["max_length"].fail("write a length of 1 or more")
    if base.max_length is not None and length > base.max_length:
        raise bounds["max_length"].fail(f"the upstream takes {base.max_length} characters at most")
    return length


def _one_of(value: _Value, base: Rule) -> frozenset[str]:
    values = [item.text() for item in _once(value)]
    for text in values:
        if base.one_of is not None and text not in base.one_of:
            raise value.fail(f"the upstream does not take {text}. {_suggest(text, base.one_of)}")
    return frozenset(values)


def _response(value: _Value, operation: Operation) -> tuple[str, ...]:
    paths: list[str] = []
    for item in _once(value):
        path = item.text()
        if path not in operation.fields and path != "audit_id":
            inner = [name for name in operation.fields if name.startswith(path + ".")]
            if inner:
                raise item.fail(f"{path} is an object. Name the fields in it, such as {inner[0]}")
            raise item.fail(f"the answer has no such field. {_suggest(path, operation.fields)}")
        paths.append(path)
    return tuple(paths)


def _record(value: _Value | None, rules: Mapping[str, Rule], operation: Operation) -> frozenset[str]:
    if value is None:
        return frozenset()
    paths = set()
    for item in _once(value):
        path = item.text()
        _granted(item, path, rules, operation)
        paths.add(path)
    return frozenset(paths)


def _stamp(value: _Value, rules: Mapping[str, Rule], operation: Operation) -> str:
    path = value.text()
    _check_path(value, path)
    if not path.startswith("metadata[") or "{" in path or parameters.template_of(operation, path) is None:
        raise value.fail('write the metadata entry that is to name the call, such as "metadata[countersign]"')
    _refuse_never(value, operation, {path})
    if operation.whole and path in lines.OURS:
        raise value.fail(f"{operation.id} writes {path} itself, to find its invoice again. Name another entry")
    if path in rules:
        raise value.fail(f"{path} is also granted to the caller, who could write something else there. Remove one")
    return path


def _idempotency(value: _Value | None, rules: Mapping[str, Rule], operation: Operation) -> Idempotency:
    if value is None:
        required = not operation.repeatable and not operation.idempotent
        return Idempotency(required=required, parameter=None, seconds=RETENTION)
    if isinstance(value.node, _Scalar):
        required = _required(value, value.one_of(("required", "optional")) == "required", operation)
        return Idempotency(required=required, parameter=None, seconds=RETENTION)
    entry = value.mapping(known=("required", "from", "prefix", "for"))
    if not entry:
        raise value.fail("write required, optional, or what every key must be, such as {prefix: order-}")
    required = _required(entry["required"], entry["required"].boolean(), operation) if "required" in entry else True
    path = rule = None
    if "from" in entry:
        path = entry["from"].text()
        rule = _granted(entry["from"], path, rules, operation)
        enumerated = operation.parameters[parameters.template_of(operation, path) or ""].one_of is not None
        always_one = rule.fixed is not None or (rule.one_of is not None and len(rule.one_of) == 1)
        if enumerated or always_one or rule.kind in {Kind.OBJECT, Kind.ARRAY, Kind.BOOLEAN, Kind.CURRENCY}:
            raise entry["from"].fail(
                f"{path} cannot tell one call from another. Name a parameter that can, such as an order number"
            )
        if not required:
            raise entry["required"].fail(f"{path} is the key, so every call must send it. Remove this")
    prefix = _key_prefix(entry["prefix"], rule) if "prefix" in entry else ""
    seconds = RETENTION
    if "for" in entry:
        hint = "write hours or days, such as 72h or 7d; 72h at least, since no-code tools repeat calls that late"
        match = _DURATION.fullmatch(entry["for"].text(_DURATION, hint))
        seconds = int(match[1]) * (3600 if match[2] == "h" else 86400) if match else 0
        if seconds < RETENTION:
            raise entry["for"].fail(hint)
    return Idempotency(required, path, seconds, prefix)


def _required(value: _Value, required: bool, operation: Operation) -> bool:  # noqa: FBT001 - what was read of it
    if not required and operation.plan:
        raise value.fail(f"{operation.id} takes several steps, which only a key holds together. Write required")
    return required


def _key_prefix(value: _Value, rule: Rule | None) -> str:
    """Read how every key must begin. ``rule`` is that of the parameter that is the key, if one is."""
    prefix = value.text()
    key = f"{prefix}1"
    if keynames.fault(key, prefix) is not None or (rule is None and not keynames.HEADER.fullmatch(key)):
        raise value.fail("a key that begins so would be refused. Write the beginning of a name, such as order-")
    if rule is None:
        return prefix
    if rule.kind is not Kind.STRING:
        raise value.fail(f"prefix cannot be said of {rule.path}, whose kind is {rule.kind.value}")
    if all(parameters.fault(rule, one) or keynames.fault(one, prefix) for one in rule.one_of or (key,)):
        raise value.fail(f"{rule.path} could never begin so and have something behind it, so no call could pass")
    return prefix


def _granted(value: _Value, path: str, rules: Mapping[str, Rule], operation: Operation) -> Rule:
    _check_path(value, path)
    rule = rules.get(path) or rules.get(parameters.template_of(operation, path) or "")
    if "{" in path or rule is None:
        raise value.fail(f"{forms.shown(path)} is not one of the parameters that this grant allows")
    _refuse_never(value, operation, {path})
    return rule


def _refuse_never(value: _Value, operation: Operation, paths: Iterable[str], stamp: str | None = None) -> None:
    """Refuse names that no call could send, such as metadata with a longer name than the upstream takes."""
    problem = parameters.impossible(operation, paths, stamp)
    if problem is not None:
        raise value.fail(f"no call could pass: {problem}")
