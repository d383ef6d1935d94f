"""Fills every recipe with one call, as a form has it, and one grant, as ``/-/me`` says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import msgspec

from console.recipes import (
    apps_script,
    curl,
    make,
    n8n,
    node,
    node_red,
    power_automate,
    python,
    signed,
    stripe_sdks,
    zapier,
)
from console.recipes.model import Holes, Input, merged
from policies import forms
from policies.model import Kind
from policies.refusals import BodyMalformed, BodyTooLarge

if TYPE_CHECKING:
    from console.recipes.model import Recipe, Value

#: In the order of the tabs.
RECIPES: Final[tuple[Recipe, ...]] = (
    curl.RECIPE,
    python.RECIPE,
    node.RECIPE,
    n8n.RECIPE,
    *node_red.RECIPES,
    make.RECIPE,
    zapier.RECIPE,
    power_automate.RECIPE,
    apps_script.RECIPE,
    *stripe_sdks.RECIPES,
    *signed.RECIPES,
)
#: The most characters of a value: the longest text of any catalogue (policies/parameters.py).
MAX_VALUE: Final = 5000
#: Bytes of the question: a call of 50 lines of some words each, in any script. The answer has some 25 times as many.
MAX_ASKED: Final = 64 * 1024
#: The same for strangers, who are shown a call that they cannot make.
MAX_STRANGERS: Final = 2 * 1024
#: What names an order in a recipe, and an example of it.
ORDER: Final = "order_id"
EXAMPLE: Final = "1001"
#: Characters of an address that say where its parts end, and those that stand for themselves.
_ADDRESS: Final = "/:@[]%"
_NESTED: Final = (Kind.OBJECT, Kind.ARRAY)
_THESE_LINES: Final = (
    "The lines are those that you filled in. For another invoice, write others in their place. An amount is in the "
    "currency's smallest unit: 12000 is 120.00."
)
#: The numbers of entries, which the catalogue writes as ``{i}``.
_PLACES: Final = re.compile(r"(?<=\[)[0-9]+(?=\])")
#: What a line costs in an example, in minor units, unless that is more than may be raised.
_EXAMPLE_AMOUNT: Final = 12000
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")

_Text = Annotated[str, msgspec.Meta(max_length=MAX_VALUE)]
_Name = Annotated[str, msgspec.Meta(max_length=forms.MAX_PATH)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The call as a form has it. ``grant`` is the id of one in ``/-/me``; without it, the first one is meant.

    ``fields`` are what was typed, by bracket path; ``key`` is the typed idempotency key, or empty.
    """

    grant: _Name = ""
    fields: Annotated[Mapping[_Name, _Text], msgspec.Meta(max_length=forms.MAX_FIELDS)] = {}
    key: Annotated[str, msgspec.Meta(max_length=255)] = ""
    validate_only: bool = False
    """Whether the recipes try the call instead of making it."""


_asked: Final = msgspec.json.Decoder(Asked).decode


def read(body: bytes, *, stranger: bool = False) -> Asked:
    """Read the body of ``POST /-/recipes``. Raises :class:`BodyMalformed`, or :class:`BodyTooLarge`."""
    if len(body) > (MAX_STRANGERS if stranger else MAX_ASKED):
        more = f", and without a caller key of {MAX_STRANGERS // 1024} KB" if stranger else ""
        raise BodyTooLarge(f"Recipes are filled with a call of {MAX_ASKED // 1024} KB at most{more}.")
    try:
        asked = _asked(body or b"{}")
    except (msgspec.MsgspecError, RecursionError):
        raise BodyMalformed(
            'Send JSON such as {"grant": "acme-billing:invoices.create", "fields": {"customer": "cus_123"}, '
            '"key": "order-1001"}, all of it text.'
        ) from None
    return msgspec.structs.replace(asked, fields=forms.parse(forms.encode(asked.fields), "form"))


class _Connection(msgspec.Struct, frozen=True):
    name: str
    connection_name: str


class _Operation(msgspec.Struct, frozen=True):
    id: str
    noun: str
    method: str
    path: str


class _Idempotency(msgspec.Struct, frozen=True, rename={"parameter": "from"}):
    parameter: str | None = None
    prefix: str | None = None


class _Field(msgspec.Struct, frozen=True):
    path: str
    kind: str = Kind.STRING
    required: bool = False
    fixed: str | None = None
    one_of: tuple[str, ...] = ()
    example: str = ""


class _Amount(msgspec.Struct, frozen=True):
    max: int | None = None


class _Lines(msgspec.Struct, frozen=True):
    max: int


class _Grant(msgspec.Struct, frozen=True):
    """What is read of a grant in ``/-/me``. What a later version adds there is not looked at."""

    id: str
    connection: _Connection
    operation: _Operation
    idempotency: _Idempotency | None
    """None where nothing is created, so that there is no key."""
    amount: _Amount | None = None
    lines: _Lines | None = None
    fields: str | tuple[_Field, ...] | None = None
    """The fields, or under which name they stand beside the grants. None of a grant that was not asked about."""


class _Credential(msgspec.Struct, frozen=True):
    tied: str | None = None


class _Described(msgspec.Struct, frozen=True):
    grants: tuple[_Grant, ...] = ()
    fields: Mapping[str, tuple[_Field, ...]] = {}
    credential: _Credential = _Credential()


msgspec.json.Decoder(_Described)  # so that msgspec knows the type before threads convert to it (see policies/fields.py)

#: For whom no grant is known yet: the call that all of them have in common.
PUBLIC: Final[Mapping[str, Any]] = {
    "grants": [
        {
            "id": "public",
            "connection": {"name": "NAME", "connection_name": "CONNECTION_NAME"},
            "operation": {"id": "invoices.create", "noun": "invoice", "method": "POST", "path": "invoices"},
            "idempotency": {"from": None, "prefix": None},
            "fields": [{"path": "customer", "required": True, "example": "cus_MQqeLuPp19Qbk8"}],
        }
    ]
}


def fill(call: Asked, *, root: str, described: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return all recipes for one call: ``{id, title, kind, steps, text, mime}`` each, in the order of their tabs.

    ``root`` is the address at which the caller reached the function; ``described`` is what ``/-/me`` says, or None
    without a credential. A recipe whose ``text`` is empty says in its step why the tool cannot make this call.
    A caller without a grant gets none. Raises :class:`BodyMalformed` for a grant that there is not.
    """
    if described is not None and not described["grants"]:
        return []
    holes = holes_of(call, root=root, described=PUBLIC if described is None else described)
    return [filled(recipe, holes) for recipe in RECIPES]


_NO_DELETE: Final = "There is no recipe here for a call that deletes. The one for curl shows what must be sent."


def filled(recipe: Recipe, holes: Holes) -> dict[str, Any]:
    """Return one recipe as the page shows it."""
    shown = {"id": recipe.id, "title": recipe.title, "kind": recipe.kind, "mime": recipe.mime}
    why = recipe.lacking(holes)
    if why is None and holes.method == "DELETE" and recipe.id != "curl":
        why = _NO_DELETE
    if why is not None:
        return {**shown, "steps": [why], "text": ""}
    told = [_THESE_LINES] if holes.whole and not recipe.maps_lines else []
    return {**shown, "steps": [*recipe.steps(holes), *told, recipe.proven], "text": recipe.make(holes)}


def holes_of(call: Asked, *, root: str, described: Mapping[str, Any]) -> Holes:
    """Return what recipes are filled with, for the grant that the call names or for the first one.

    The order and every needed field are inputs, with what was typed as an example; all else that was typed is text. A
    field that is needed and was left out is an input, too. What the policy fixes is not sent.

    Raises :class:`BodyMalformed` for a grant that there is not.
    """
    known = msgspec.convert(described, type=_Described)
    grant = next((one for one in known.grants if call.grant in {"", one.id}), None)
    if grant is None:
        raise BodyMalformed(f"There is no grant {forms.shown(call.grant)}. Send the id of one that /-/me names.")
    fields = known.fields[grant.fields] if isinstance(grant.fields, str) else grant.fields or ()
    key = grant.idempotency
    needed = {one.path: one.example for one in fields if one.required and one.fixed is None and one.kind not in _NESTED}
    kinds = {one.path: one.kind for one in fields}
    fixed = {one.path for one in fields if one.fixed is not None}
    in_address = [part[1:-1] for part in grant.operation.path.split("/") if part.startswith("{")]
    only = {one.path for one in fields if len(one.one_of) == 1}  # nothing to choose, so no input
    typed = needed | {path: value for path, value in call.fields.items() if path not in fixed}
    if grant.lines is not None and not any(path.startswith("lines[") for path in typed):
        typed |= _example_line(grant, fields)
    order: Input | None = None
    whole: Value = ()
    named = None
    if key is not None:
        prefix, named = key.prefix or "", key.parameter
        said = call.key if named is None else typed.setdefault(named, "")
        order = Input(ORDER, said.removeprefix(prefix) or EXAMPLE)
        whole = (prefix, order) if prefix else (order,)
    # What names this order, in whatever field, names every other one there.
    naming: dict[str, Value] = {} if order is None or not call.key else {order.example: (order,), call.key: whole}
    inputs = [] if order is None else [order]
    values: dict[str, Value] = {}
    for path, value in forms.canonical(typed).items():
        if path == named:
            values[path] = whole
        elif (path in needed and path not in only) or path in in_address:
            name = f"{path}_id" if path in in_address else _named(path, inputs)
            inputs.append(Input(name, value))
            values[path] = (inputs[-1],)
        elif value in naming and kinds.get(_PLACES.sub("{i}", path), Kind.STRING) == Kind.STRING:
            values[path] = naming[value]
        else:
            values[path] = (value,)
    at = quote(root.rstrip("/"), safe=_ADDRESS)
    ids = tuple(values.pop(name, ("",)) for name in in_address)
    return Holes(
        root=at,
        url=_address(at, grant, iter(ids), validate_only=call.validate_only),
        connection=(grant.connection.name, grant.connection.connection_name),
        operation=grant.operation.id,
        method=grant.operation.method,
        noun=grant.operation.noun,
        fields=values,
        ids=ids,
        key=whole if order is not None and named is None else None,
        order=order,
        inputs=tuple(inputs),
        tied=known.credential.tied is not None,
        whole=grant.lines is not None,
    )


def _example_line(grant: _Grant, fields: tuple[_Field, ...]) -> dict[str, str]:
    """Return one line, for a form that has none yet."""
    most = _EXAMPLE_AMOUNT if grant.amount is None or grant.amount.max is None else grant.amount.max
    text = next((one.example for one in fields if one.path == "lines[{i}][description]"), "")
    amount = {"lines[0][amount]": str(min(most, _EXAMPLE_AMOUNT))}
    return amount | ({"lines[0][description]": text} if text else {})


#: Of the names of fields, those that programs of recipes have for something else.
_TAKEN: Final = frozenset({"name"})


def _named(path: str, taken: list[Input]) -> str:
    """Return an input's name for a field, unlike all others: ``custom_fields_0_name``."""
    name = _NOT_IN_NAMES.sub("_", path.lower()).strip("_")
    while name in _TAKEN or name in {one.name for one in taken}:
        name += "_"
    return name


def _address(root: str, grant: _Grant, ids: Any, *, validate_only: bool) -> Value:
    names = {"name": grant.connection.name, "connection_name": grant.connection.connection_name}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in names.items())
    parts: list[str | Input] = [f"{root}/stripe/"]
    for number, part in enumerate(grant.operation.path.split("/")):
        if number:
            parts.append("/")
        if part.startswith("{"):
            parts += [quote(one, safe="") if isinstance(one, str) else one for one in next(ids)]
        else:
            parts.append(part)
    parts.append(f"/?{query}{'&validate_only=true' if validate_only else ''}")
    return merged(parts)
