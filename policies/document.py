"""A policy document -> PolicySet, or an error that names file, line and key.

The document is YAML that states facts. Its format is described in ``docs/policy.md``; what is not written in it is
denied, and what cannot take effect (an unknown key, an unused connection, a limit that another makes unreachable) is
an error, since whoever wrote it believed that it did.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import yaml

from policies import fields, forms, parameters, quota
from policies.idempotency import RETENTION
from policies.model import (
    NAME,
    WHOLESALE,
    Budget,
    Caller,
    Connection,
    Entitlement,
    Idempotency,
    Kind,
    Limit,
    PolicySet,
    Risk,
    Rule,
)
from policies.operations import OPERATIONS
from policies.upstreams import STRIPE, UPSTREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import Any

    from policies.model import Operation, Parameter

T = TypeVar("T")

_SECRET = re.compile(r"projects/[a-z0-9:.-]{1,63}/secrets/[A-Za-z0-9_-]{1,255}/versions/(latest|[A-Za-z0-9_-]{1,63})")
_FILE = re.compile(r"file:.+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: As Google writes it in a token: in small letters.
_EMAIL = re.compile(r"(?=.{3,254}$)[a-z0-9._%+'-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_DURATION = re.compile(r"([1-9][0-9]{0,3})(h|d)")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

#: The key of nobody: the digest of an empty text, which a slip of the shell produces.
_EMPTY_KEY: Final = hashlib.sha256(b"").digest()

#: A signed webhook does not name its caller, so every secret that could have signed it is tried.
MAX_WEBHOOKS: Final = 16

#: The format needs 8; far beyond it, libyaml's reader ends the process.
_MAX_DEPTH: Final = 16

#: libyaml reads a large document about ten times as fast; the pure one reads the same documents.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(Exception):
    """What is wrong with a document: ``FILE:LINE: KEY: what to do about it``."""


class _Value:
    """A node of the document that knows where it stands."""

    __slots__ = ("file", "line", "node", "path")

    def __init__(self, file: str, node: yaml.Node, path: str, line: int | None = None) -> None:
        self.file, self.node, self.path = file, node, path
        self.line = node.start_mark.line + 1 if line is None else line

    def fail(self, problem: str) -> DocumentError:
        return DocumentError(f"{self.file}:{self.line}: {self.path}: {problem}")

    @property
    def empty(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    def mapping(self, known: Collection[str] = (), required: Collection[str] = ()) -> dict[str, _Value]:
        """Read an object. With ``known``, any other key is an error; with ``required``, a missing one is."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.fail("write an object here: key: value")
        values: dict[str, _Value] = {}
        for key_node, value_node in self.node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError(f"{self.file}:{line}: {self.path}: a key must be plain text")
            key = key_node.value
            value = _Value(self.file, value_node, f"{self.path}.{key}" if self.path else key, line)
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
        """Read a list that holds something."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.fail("write a list here: [one, another]")
        if not self.node.value:
            raise self.fail("this list is empty")
        for index, node in enumerate(self.node.value):
            yield _Value(self.file, node, f"{self.path}[{index}]")

    def text(self, pattern: re.Pattern[str] | None = None, hint: str = "") -> str:
        """Read a scalar as it is written: YAML's readings of ``no`` or ``1e3`` are not ours."""
        if not isinstance(self.node, yaml.ScalarNode) or self.empty or not self.node.value:
            raise self.fail(hint or "write a text here")
        value = str(self.node.value)
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
    if not isinstance(root.node, yaml.MappingNode):
        raise DocumentError(f"{file}:1: the document must be an object with connections and callers")
    top = root.mapping(known=("connections", "callers"))
    for key in ("connections", "callers"):
        if key not in top:
            raise DocumentError(f"{file}:1: {key}: this key is missing")
    connections = _connections(top["connections"])
    known = _Credentials()
    callers = top["callers"].mapping()
    used: set[str] = set()
    if not callers:
        raise top["callers"].fail("no caller is written, so nobody could call")
    for name, value in callers.items():
        _name(value, name)
        _caller(name, value, connections, known, used)
    for name, value in top["connections"].mapping().items():
        if name not in used:
            raise value.fail("no grant uses this connection. Grant it to a caller, or remove it")
    return PolicySet(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        connections=connections,
        callers=frozenset(callers),
        keys=known.keys,
        google=known.google,
        webhooks=known.webhooks,
    )


def _compose(text: str, file: str) -> yaml.Node:
    depth = 0
    try:
        for event in yaml.parse(text, Loader=LOADER):
            problem = None
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                problem = "anchors (&) and aliases (*) are not part of the format"
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                problem = "the document is nested too deeply" if depth > _MAX_DEPTH else None
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if problem is not None:
                line = event.start_mark.line + 1 if event.start_mark is not None else 1
                raise DocumentError(f"{file}:{line}: {problem}")
        node: yaml.Node | None = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        hint = 'Between [ ] or { }, write a name that has brackets in quotes: "metadata[order_id]"'
        raise DocumentError(f"{file}:{line}: this is not YAML: {error.problem}. {hint}") from None
    except (yaml.YAMLError, RecursionError):
        raise DocumentError(f"{file}:1: this is not YAML") from None
    if node is None:
        raise DocumentError(f"{file}:1: the document is empty")
    return node


def _suggest(word: str, known: Collection[str]) -> str:
    close = get_close_matches(word, known, 1)
    return f"Did you mean {close[0]}?" if close else f"Write one of: {', '.join(sorted(known))}"


def _name(value: _Value, name: str) -> str:
    if not NAME.fullmatch(name):
        raise value.fail("a name is up to 64 letters, digits, dots, dashes and underscores")
    return name


# ---------------------------------------------------------------- connections

#: The version that the catalogue of ``policies.operations`` was made from.
_STRIPE_VERSION: Final = "2026-05-27.dahlia"
_STRIPE_ORIGIN: Final = "https://api.stripe.com"
_VERSION = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}(\.[a-z]{1,32})?")
_ACCOUNT = re.compile(r"acct_[A-Za-z0-9]{1,64}")


def _connections(value: _Value) -> dict[str, Connection]:
    connections: dict[str, Connection] = {}
    accounts: dict[tuple[str, str], str] = {}
    for name, entry in value.mapping().items():
        connection = _connection(_name(entry, name), entry)
        other = accounts.setdefault((connection.name, connection.connection_name), name)
        if other != name:
            raise entry.fail(f"{other} has the same name and connection_name; a call could mean either")
        connections[name] = connection
    if not connections:
        raise value.fail("no connection is written, so nothing could be called")
    return connections


def _connection(name: str, entry: _Value) -> Connection:
    required = ("name", "connection_name", "upstream", "secret")
    keys = entry.mapping(known=(*required, "origin", "ceiling", "version", "account"), required=required)
    hint = "write the name that callers send: letters, digits, dots, dashes and underscores"
    upstream = UPSTREAMS[keys["upstream"].one_of(UPSTREAMS)]
    stripe = upstream is STRIPE
    if "origin" not in keys and not stripe:
        raise entry.fail("origin is missing")
    for key in ("version", "account"):
        if key in keys and not stripe:
            raise keys[key].fail(f"{key} means something at Stripe only. Remove it")
    version = _STRIPE_VERSION if stripe else None
    if "version" in keys:
        version = keys["version"].text(_VERSION, f"write one of Stripe's API versions, such as {_STRIPE_VERSION}")
    account = None
    if "account" in keys:
        account = keys["account"].text(_ACCOUNT, "write a connected account, such as acct_1032D82eZvKYlo2C")
    return Connection(
        id=name,
        name=keys["name"].text(NAME, hint),
        connection_name=keys["connection_name"].text(NAME, hint),
        upstream=upstream,
        origin=_origin(keys["origin"]) if "origin" in keys else _STRIPE_ORIGIN,
        secret=_secret(keys["secret"]),
        ceiling=keys["ceiling"].limit() if "ceiling" in keys else None,
        version=version,
        account=account,
    )


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
    if not _SECRET.fullmatch(text) and not _FILE.fullmatch(text):
        raise value.fail(
            "write where the key lies: projects/PROJECT/secrets/NAME/versions/latest, or file:PATH of a mounted one"
        )
    return text


# ---------------------------------------------------------------- callers


class _Credentials:
    """The credentials of all callers as they are read. Each belongs to one caller, once."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Caller] = {}
        self.google: dict[str, Caller] = {}
        self.webhooks: dict[tuple[str, str], dict[str, Caller]] = {}
        self._signers: dict[str, str] = {}

    def add_key(self, value: _Value, digest: bytes, caller: Caller) -> None:
        other = self.keys.setdefault(digest, caller)
        if other is not caller:
            raise value.fail(f"this key is also a key of {other.id}; every key belongs to one caller, once")

    def add_google(self, value: _Value, email: str, caller: Caller) -> None:
        other = self.google.setdefault(email, caller)
        if other is not caller:
            raise value.fail(f"{email} is also an identity of {other.id}; every identity belongs to one caller, once")

    def add_webhook(self, value: _Value, secret: str, caller: Caller) -> None:
        # Whatever its version: two callers with one secret could not be told apart.
        other = self._signers.setdefault(secret.partition("/versions/")[0], caller.id)
        if other != caller.id:
            raise value.fail(f"this is also a secret of {other}; make one for each caller")
        for place in {(connection, account) for connection, account, _ in caller.entitlements}:
            signers = self.webhooks.setdefault(place, {})
            if secret in signers:
                raise value.fail("this secret is written twice")
            signers[secret] = caller
            if len(signers) > MAX_WEBHOOKS:
                raise value.fail(
                    f"more than {MAX_WEBHOOKS} secrets could sign for one connection, and each is tried. Remove those "
                    "that are no longer used, or give some of these callers a key instead"
                )


def _caller(
    name: str,
    value: _Value,
    connections: Mapping[str, Connection],
    known: _Credentials,
    used: set[str],
) -> None:
    required = ("owner", "credentials", "limits", "grants")
    entry = value.mapping(known=(*required, "budget"), required=required)
    owner = entry["owner"].text()
    entitlements: dict[tuple[str, str, str], Entitlement] = {}
    for grant in entry["grants"].items():
        entitlement = _entitlement(grant, connections)
        connection = entitlement.connection
        place = (connection.name, connection.connection_name, entitlement.operation.id)
        if place in entitlements:
            raise grant.fail(f"{connection.id} and {entitlement.operation.id} are granted twice; write one grant")
        entitlements[place] = entitlement
        used.add(connection.id)
    limits = _limits(entry["limits"], {entitlement.connection for entitlement in entitlements.values()})
    budget = _budget(entry["budget"]) if "budget" in entry else None

    def by(credential: str, expires: float | None = None) -> Caller:
        return Caller(name, owner, credential, expires, limits, budget, entitlements)

    ids: set[str] = set()
    for credential in entry["credentials"].items():
        kinds = credential.mapping(known=("key", "google", "webhook"))
        if len(kinds) != 1:
            raise credential.fail("write one kind of credential in each entry: key, google or webhook")
        if "google" in kinds:
            email = kinds["google"].text(
                _EMAIL, "write the e-mail address of a service account or a person, in small letters as Google does"
            )
            known.add_google(kinds["google"], email, by(f"google:{email}"))
        elif "webhook" in kinds:
            secret = _secret(kinds["webhook"])
            known.add_webhook(kinds["webhook"], secret, by(f"webhook:{secret}"))
        else:
            digest, key_id, expires = _key(kinds["key"])
            if key_id in ids:
                raise credential.fail(f"the id {key_id} is used twice")
            ids.add(key_id)
            known.add_key(credential, digest, by(key_id, expires))


def _key(value: _Value) -> tuple[bytes, str, float | None]:
    entry = value.mapping(known=("id", "sha256", "expires"), required=("id", "sha256"))
    digest = bytes.fromhex(
        entry["sha256"].text(_SHA256, "write the key's SHA-256, 64 small hexadecimal digits; never the key itself")
    )
    if digest == _EMPTY_KEY:
        raise entry["sha256"].fail("this is the digest of an empty text, so the key got lost on the way")
    expires = _expiry(entry["expires"]) if "expires" in entry else None
    return digest, _name(entry["id"], entry["id"].text()), expires


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


def _budget(value: _Value) -> Budget:
    required = ("currency", "amount", "per")
    entry = value.mapping(known=required, required=required)
    currency = entry["currency"].text(re.compile(r"[a-z]{3}"), "write a currency in three small letters, such as usd")
    amount = entry["amount"].integer()
    if amount < 1:
        raise entry["amount"].fail("write an amount in minor units (cents), 1 or more")
    per = entry["per"].one_of(("hour", "day"))
    return Budget(currency, Limit(amount, quota.UNITS[per], f"{amount} {currency}/{per}"))


def _most(limit: Limit, seconds: int) -> int:
    """How many calls ``limit`` can let through in ``seconds``."""
    return limit.calls * max(1, seconds // limit.seconds)


# ---------------------------------------------------------------- grants


def _entitlement(value: _Value, connections: Mapping[str, Connection]) -> Entitlement:
    required = ("connection", "operation", "response")
    optional = ("idempotency", "groups", "parameters", "record", "stamp")
    entry = value.mapping(known=(*required, *optional), required=required)
    connection = connections[entry["connection"].one_of(connections)]
    operation = _operation(entry, connection)
    rules: dict[str, Rule] = {}
    required_paths: list[str] = []
    if "groups" in entry:
        rules.update(_groups(entry["groups"], operation))
    if "parameters" in entry:
        # Whole objects first, so that what is said of a part holds wherever it is written.
        written = entry["parameters"].mapping().items()
        for path, bounds in sorted(written, key=lambda item: item[0].count("[")):
            for rule in _rules(path, bounds, operation):
                rules[rule.path] = rule
            if _if_written(_bounds(bounds), "required", _Value.boolean):
                required_paths.append(path)
    if not rules:
        raise value.fail("this grant allows no parameter, so no call could pass. Name them under parameters")
    for part in operation.path.split("/"):
        if part.startswith("{") and part[1:-1] not in rules:
            raise value.fail(
                f"every call names {part[1:-1]} in its path, so none could pass. Grant it under parameters"
            )
    response = _response(entry["response"], operation)
    paths = tuple(path for path in response if path != "audit_id")
    return Entitlement(
        connection=connection,
        operation=operation,
        idempotency=_idempotency(entry.get("idempotency"), rules, operation),
        rules=rules,
        required=tuple(required_paths),
        fixed={path: rule.fixed for path, rule in rules.items() if rule.fixed is not None},
        response=fields.tree_of(paths, operation.fields),
        response_fields=response,
        audit_id_in_answer="audit_id" in response,
        stamp=_stamp(entry["stamp"], rules, operation) if "stamp" in entry else None,
        record=_record(entry.get("record"), rules, operation),
    )


def _operation(entry: Mapping[str, _Value], connection: Connection) -> Operation:
    operation = OPERATIONS[entry["operation"].one_of(OPERATIONS)]
    if operation.id not in connection.upstream.operations:
        offered = ", ".join(sorted(connection.upstream.operations))
        raise entry["operation"].fail(f"{connection.upstream.id} does not offer this. Write one of: {offered}")
    for key in ("idempotency", "stamp"):
        if key in entry and not operation.creates:
            raise entry[key].fail(f"{operation.id} creates nothing, so this means nothing here. Remove it")
    return operation


def _groups(value: _Value, operation: Operation) -> Iterator[tuple[str, Rule]]:
    names = {risk.value: risk for risk in Risk}
    for item in value.items():
        risk = names[item.one_of(names)]
        if risk not in WHOLESALE:
            raise item.fail(f"a whole group that {risk.value} cannot be granted. Name its parameters one by one")
        for parameter in operation.parameters.values():
            if parameter.risk is risk and _sendable(parameter):
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
        unsets=parameter.unsets,
    )


def _bounds(value: _Value) -> dict[str, _Value]:
    known = ("required", "max_length", "min", "max", "one_of", "prefix", "fixed")
    return {} if value.empty else value.mapping(known=known)


def _rules(path: str, value: _Value, operation: Operation) -> Iterator[Rule]:
    """Yield the rules that one entry under ``parameters`` makes: one, or one for each part of an object."""
    template = parameters.template_of(operation, path)
    if template is None:
        raise value.fail(f"{operation.id} has no such parameter. {_suggest(path, operation.parameters)}")
    parameter = operation.parameters[template]
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
        minimum=_if_written(bounds, "min", _Value.integer),
        maximum=_if_written(bounds, "max", _Value.integer),
        one_of=_one_of(bounds["one_of"], base) if "one_of" in bounds else base.one_of,
        prefix=_if_written(bounds, "prefix", _Value.text),
        required=_if_written(bounds, "required", _Value.boolean) or False,
        unsets=base.unsets,
    )
    _refuse_impossible(rule, bounds)
    if "fixed" not in bounds:
        return rule
    fixed = bounds["fixed"].text()
    problem = parameters.fault(rule, fixed)
    if problem is not None:
        raise bounds["fixed"].fail(f"{path} {problem}")
    return Rule(path=path, kind=base.kind, fixed=fixed)


def _if_written(bounds: Mapping[str, _Value], key: str, read_as: Callable[[_Value], T]) -> T | None:
    return read_as(bounds[key]) if key in bounds else None


def _refuse_impossible(rule: Rule, bounds: Mapping[str, _Value]) -> None:
    """Bounds that no value could pass are a slip of whoever wrote them."""
    if rule.minimum is not None and rule.maximum is not None and rule.minimum > rule.maximum:
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
    values = [item.text() for item in value.items()]
    if len(set(values)) != len(values):
        raise value.fail("a value is written twice")
    for text in values:
        if base.one_of is not None and text not in base.one_of:
            raise value.fail(f"the upstream does not take {text}. {_suggest(text, base.one_of)}")
    return frozenset(values)


def _response(value: _Value, operation: Operation) -> tuple[str, ...]:
    paths: list[str] = []
    for item in value.items():
        path = item.text()
        if path in paths:
            raise item.fail(f"{path} is written twice")
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
    for item in value.items():
        path = item.text()
        _granted(item, path, rules, operation)
        paths.add(path)
    return frozenset(paths)


def _stamp(value: _Value, rules: Mapping[str, Rule], operation: Operation) -> str:
    path = value.text()
    if not path.startswith("metadata[") or "{" in path or parameters.template_of(operation, path) is None:
        raise value.fail('write the metadata entry that is to name the call, such as "metadata[countersign]"')
    if path in rules:
        raise value.fail(f"{path} is also granted to the caller, who could write something else there. Remove one")
    return path


def _idempotency(value: _Value | None, rules: Mapping[str, Rule], operation: Operation) -> Idempotency:
    if value is None:
        return Idempotency(required=operation.creates, parameter=None, seconds=RETENTION)
    if isinstance(value.node, yaml.ScalarNode):
        mode = value.one_of(("required", "optional"))
        return Idempotency(required=mode == "required", parameter=None, seconds=RETENTION)
    entry = value.mapping(known=("from", "for"), required=("from",))
    path = entry["from"].text()
    rule = _granted(entry["from"], path, rules, operation)
    if rule.fixed is not None or rule.kind in {Kind.OBJECT, Kind.ARRAY}:
        raise entry["from"].fail(
            f"{path} cannot tell one call from another. Name a parameter that can, such as an order number"
        )
    seconds = RETENTION
    if "for" in entry:
        hint = "write hours or days, such as 72h or 7d; 72h at least, since no-code tools repeat calls that late"
        match = _DURATION.fullmatch(entry["for"].text(_DURATION, hint))
        seconds = int(match[1]) * (3600 if match[2] == "h" else 86400) if match else 0
        if seconds < RETENTION:
            raise entry["for"].fail(hint)
    return Idempotency(required=True, parameter=path, seconds=seconds)


def _granted(value: _Value, path: str, rules: Mapping[str, Rule], operation: Operation) -> Rule:
    rule = rules.get(path) or rules.get(parameters.template_of(operation, path) or "")
    if "{" in path or rule is None:
        raise value.fail(f"{forms.shown(path)} is not one of the parameters that this grant allows")
    return rule
