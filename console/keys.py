"""``countersign key``: makes, rotates, revokes and recognises caller keys.

What a key looks like is in :mod:`policies.callerkeys`. A key is printed once, and never taken as an argument.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import os
import secrets
import shlex
import string
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from console import rewriting
from gateway.reloading import PROMISED_SECONDS
from policies import compiled, document
from policies.callerkeys import DIGITS, PREFIX, RANDOM, checked, whole
from policies.model import NAME, VERSION, DocumentError, Proof

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from policies.model import Caller, PolicySet

#: How many days an old key keeps working after a rotation, by default.
OVERLAP_DAYS: Final = 7
_MOST_DAYS: Final = 3650
_MOST_KEY: Final = 10_000


class NotDoneError(Exception):
    """Nothing was changed. The text says why, and what to do."""


def mint() -> str:
    """Make a key."""
    return checked(PREFIX + "".join(secrets.choice(DIGITS) for _ in range(RANDOM)))


def digest_of(key: str) -> str:
    """Return a key's digest, as a policy document has it."""
    return _proof(key).value.hex()


def _proof(key: str) -> Proof:
    return Proof("key", hashlib.sha256(key.encode("utf-8", "replace")).digest())


# ---------------------------------------------------------------- the commands


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``key`` and its commands."""
    group = commands.add_parser(
        "key",
        help="make, change, revoke and recognise caller keys",
        epilog="Example: ./countersign key new billing-app --policy policies/documents/acme.yaml",
    )
    verbs = group.add_subparsers(required=True, metavar="COMMAND")

    new = verbs.add_parser(
        "new",
        help="make a key, and say what to write into the policy",
        epilog="Example: ./countersign key new billing-app --expires 2199-03-01 --policy policies/documents/acme.yaml",
    )
    new.add_argument("caller", metavar="CALLER")
    new.add_argument("--id", metavar="ID", type=_id, help="the key's name in the record (default: the next free one)")
    new.add_argument("--expires", metavar="DATE", type=_date, help="the key expires at the start of this day, UTC")
    new.set_defaults(run=_told(_new))

    rotate = verbs.add_parser(
        "rotate",
        help="write a new key into the policy, and let the old one expire",
        epilog="Example: ./countersign key rotate billing-app k1 --days 30 --policy policies/documents/acme.yaml",
    )
    rotate.add_argument("caller", metavar="CALLER")
    rotate.add_argument("old", metavar="ID", help="the key to replace")
    rotate.add_argument(
        "--days", metavar="N", type=_days, default=OVERLAP_DAYS, help="how many more days the old key works"
    )
    rotate.add_argument("--id", metavar="NEW", type=_id, help="the new key's name in the record (default: next free)")
    rotate.set_defaults(run=_told(_rotate))

    revoke = verbs.add_parser(
        "revoke",
        help="remove a key from the policy",
        epilog="Example: ./countersign key revoke billing-app k1 --policy policies/documents/acme.yaml",
    )
    revoke.add_argument("caller", metavar="CALLER")
    revoke.add_argument("old", metavar="ID", help="the key to revoke")
    revoke.set_defaults(run=_told(_revoke))

    whose = verbs.add_parser(
        "whose",
        help="read a key from standard input and say whose it is",
        epilog="Example: ./countersign key whose --policy policies/documents/acme.yaml",
    )
    whose.set_defaults(run=_told(_whose))

    for verb in (new, rotate, revoke, whose):
        verb.add_argument(
            "--policy", type=Path, metavar="FILE", help="the policy document (default: POLICY, if a file)"
        )


def _id(text: str) -> str:
    if not NAME.fullmatch(text) or text.lower() == "null":
        raise argparse.ArgumentTypeError("an id is up to 64 letters, digits, dots, dashes and underscores")
    return text


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError("write a date, such as 2027-03-01") from None


def _days(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= _MOST_DAYS:
        raise argparse.ArgumentTypeError("write a number of days, 1 or more; to end a key now, revoke it")
    return int(text)


def _told(work: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(asked: argparse.Namespace) -> int:
        try:
            return work(asked)
        except NotDoneError as error:
            print(error, file=sys.stderr)
            return 1

    return run


def _new(asked: argparse.Namespace) -> int:
    file = _file(asked.policy)
    policy = None if file is None else _Policy.of(file)
    taken = policy.ids(asked.caller) if policy is not None else set()
    if asked.id in taken:
        raise NotDoneError(f"{asked.caller} has a key {asked.id} already. Write another --id.")
    if asked.expires is not None and _begins(asked.expires) <= time.time():
        raise NotDoneError(f"{asked.expires} has begun, so the key would never work. Write a later date.")
    if policy is None:
        print("No policy was named, so the caller and the id were not checked. See --policy.", file=sys.stderr)
    elif asked.caller not in policy.read.names:
        print(f"{policy.stranger(asked.caller)} The key is made anyway.", file=sys.stderr)
    key = mint()
    said = rewriting.entry(asked.id or _next_id("k1", taken), digest_of(key), expires=asked.expires)
    _show(asked.caller, key)
    where = "" if file is None else f" in {file}"
    print(f"Write this below callers.{asked.caller}.credentials{where}. It has the key's SHA-256, not the key:\n")
    print(rewriting.line(policy.text if policy is not None else "", asked.caller, said))
    print(f"\n{_effect(file)}")
    return 0


def _rotate(asked: argparse.Namespace) -> int:
    policy, key = _Policy.of(_needed(asked.policy)), mint()
    new_id, ends = policy.rotate(asked.caller, asked.old, asked.id, key, _after(time.time(), asked.days))
    _show(asked.caller, key)
    print(f"{policy.file} now has its SHA-256, as {new_id}. {asked.old} works until {ends}.")
    print(_effect(policy.file))
    return 0


def _revoke(asked: argparse.Namespace) -> int:
    policy = _Policy.of(_needed(asked.policy))
    policy.revoke(asked.caller, asked.old)
    print(f"{asked.old} of {asked.caller} was removed from {policy.file}.")
    print(_effect(policy.file))
    return 0


def _whose(asked: argparse.Namespace) -> int:
    policy = _Policy.of(_needed(asked.policy))
    asking = "The key (it is not shown): "
    key = (getpass.getpass(asking) if sys.stdin.isatty() else sys.stdin.readline(_MOST_KEY)).strip()
    if not key:
        raise NotDoneError("There was no key on standard input.")
    if whole(key):
        print("The key is intact: its checksum is right.")
    caller = policy.read.callers.get(_proof(key))
    if caller is None:
        if not whole(key):
            print("Its checksum is wrong: if `countersign key` made it, it was mistyped or truncated.")
        print(f"No caller in {policy.file} has this key.")
        return 1
    ended = caller.expires is not None and caller.expires <= time.time()
    print(f"It is {caller.credential} of {caller.id} ({caller.owner}){', and has expired' if ended else ''}.")
    one = f"{caller.id} {caller.credential} --policy {shlex.quote(str(policy.file))}"
    print(
        "If others may have it, replace it, and then revoke it; at once if it is being misused:\n"
        f"  ./countersign key rotate {one}\n  ./countersign key revoke {one}"
    )
    return 0


def _show(caller: str, key: str) -> None:
    print(f"The key of {caller}, shown only once. Pass it on by a password manager, not by mail:\n\n{key}\n")


def _effect(file: Path | None) -> str:
    """Say how a change of the file reaches the function."""
    data = f"--data-file={shlex.quote(str(file or 'FILE'))}"
    within = f"within {PROMISED_SECONDS:.0f} seconds"
    version = VERSION.fullmatch(os.environ.get("POLICY", ""))
    if version is None:
        return (
            f"It takes effect {within} if the function reads this very file, and with the next deploy if the file\n"
            f"is deployed with it. If the policy is in Secret Manager, {within} of\n"
            f"  gcloud secrets versions add SECRET --project=PROJECT {data}"
        )
    where = f" --location={version['location']}" if version["location"] else ""
    add = f"  gcloud secrets versions add {version['secret']} --project={version['project']}{where} {data}"
    if version["version"].isdecimal():
        return f"POLICY is pinned to version {version['version']}: deploy with the number that this prints.\n{add}"
    return f"It takes effect on every instance {within} of\n{add}"


# ---------------------------------------------------------------- the policy document


def _begins(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def _after(now: float, days: int) -> str:
    """Return the first day that begins at least ``days`` days from now."""
    return (datetime.fromtimestamp(now, UTC) + timedelta(days=days + 1)).date().isoformat()


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes").replace("+00:00", "Z")


def _next_id(like: str, taken: Collection[str]) -> str:
    """Return the first free id, counting up from ``like``."""
    stem = like.rstrip(string.digits)
    number = int(like[len(stem) :] or 2)
    if stem == like:
        stem += "-"
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def _file(named: Path | None) -> Path | None:
    """Return the policy's file: the named one, or else the one in ``POLICY``; None if there is none."""
    setting = os.environ.get("POLICY", "")
    if named is not None:
        return named
    return Path(setting) if setting and not VERSION.fullmatch(setting) else None


def _needed(named: Path | None) -> Path:
    file = _file(named)
    if file is not None:
        return file
    if os.environ.get("POLICY"):
        raise NotDoneError(
            "POLICY is a Secret Manager version, which cannot be changed. Name the file that it was made from: "
            "--policy FILE."
        )
    raise NotDoneError("Name the policy document: --policy FILE.")


@dataclass(frozen=True)
class _Policy:
    """A policy document in a file, to read and to change."""

    file: Path
    data: bytes
    text: str
    read: PolicySet

    @classmethod
    def of(cls, file: Path) -> _Policy:
        """Read a document. Raises :class:`NotDoneError`."""
        try:
            data = file.read_bytes()
            if compiled.recognised(data):
                raise NotDoneError(
                    f"{file} is a compiled policy, which is read-only. Name the document that it was compiled from "
                    "(--policy FILE), and compile that again when it has changed."
                )
            text = data.decode()
            return cls(file, data, text, document.read(text, str(file)))
        except DocumentError as error:
            raise NotDoneError(f"{error}. Correct this first; nothing was changed.") from None
        except UnicodeDecodeError:
            raise NotDoneError(f"{file}: it is not UTF-8 text. Save it as UTF-8.") from None
        except OSError as error:
            raise NotDoneError(f"{file}: it cannot be read ({error.strerror}).") from None

    def stranger(self, caller: str) -> str:
        close = get_close_matches(caller, self.read.names, 3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return f"There is no caller {caller} in {self.file}.{hint}"

    def ids(self, caller: str) -> set[str]:
        return {one.credential for proof, one in self.read.callers.items() if _is_key_of(proof, one, caller)}

    def _key(self, caller: str, key_id: str) -> tuple[Proof, Caller]:
        if caller not in self.read.names:
            raise NotDoneError(self.stranger(caller))
        for proof, one in self.read.callers.items():
            if _is_key_of(proof, one, caller) and one.credential == key_id:
                return proof, one
        keys = ", ".join(sorted(self.ids(caller))) or "none"
        raise NotDoneError(f"{caller} has no key {key_id} in {self.file}. Its keys: {keys}.")

    def rotate(self, caller: str, old_id: str, new_id: str | None, key: str, until: str) -> tuple[str, str]:
        """Add a new key after an old one, which expires as the day ``until`` begins, or earlier if it did before.

        Returns the new key's id, and when the old one expires. Raises :class:`NotDoneError`.
        """
        proof, old = self._key(caller, old_id)
        taken, ends = self.ids(caller), _begins(until)
        if new_id in taken:
            raise NotDoneError(f"{caller} has a key {new_id} already. Write another --id.")
        new_id = new_id or _next_id(old_id, taken)
        tied = None if old.tied is None else old.tied.id
        said = rewriting.entry(new_id, digest_of(key), connection=tied)
        by_hand = f"make a key with `key new {caller}`" + (f" and tie it to {tied}" if tied else "")
        callers = {**self.read.callers, _proof(key): replace(old, credential=new_id, expires=None)}
        date = None
        if old.expires is None or old.expires > ends:
            callers[proof], date = replace(old, expires=ends), until
            by_hand += f", and write `expires: {until}` into {old_id}"
        try:
            text = rewriting.rotated(self.text, caller, old_id, said, date)
        except rewriting.LayoutError as error:
            raise self._by_hand(by_hand, str(error)) from None
        self._write(text, callers, by_hand)
        return new_id, _moment(callers[proof].expires or ends)

    def revoke(self, caller: str, key_id: str) -> None:
        """Remove a key. Raises :class:`NotDoneError`."""
        proof, _ = self._key(caller, key_id)
        by_hand = f"remove {key_id} from the credentials of {caller}"
        if rewriting.credentials_of(self.text, caller) == 1:
            raise NotDoneError(
                f"{key_id} is the only credential of {caller}, and a caller must have one. Nothing was changed. Make "
                f"another first: ./countersign key rotate {caller} {key_id} (discard the new key if none is needed). "
                "Or remove the caller from the document by hand."
            )
        try:
            text = rewriting.without(self.text, caller, key_id)
        except rewriting.LayoutError as error:
            raise self._by_hand(by_hand, str(error)) from None
        self._write(text, {other: one for other, one in self.read.callers.items() if other != proof}, by_hand)

    def _by_hand(self, what: str, where: str = "") -> NotDoneError:
        place = f"{self.file} ({where})" if where else str(self.file)
        return NotDoneError(
            f"{place} has a layout that this command cannot edit. Nothing was changed. By hand: {what}."
        )

    def _write(self, text: str, callers: dict[Proof, Caller], by_hand: str) -> None:
        """Write the document if it means exactly what was intended."""
        try:
            after = document.read(text, str(self.file))
        except DocumentError:
            raise self._by_hand(by_hand) from None
        kinds = frozenset(proof.kind for proof in callers)
        if after != replace(self.read, digest=after.digest, callers=callers, kinds=kinds):
            raise self._by_hand(by_hand)
        try:
            _replace(self.file.resolve(), self.data, text.encode())
        except OSError as error:
            raise NotDoneError(f"{self.file} cannot be written ({error.strerror}). Nothing was changed.") from None


def _is_key_of(proof: Proof, one: Caller, caller: str) -> bool:
    return proof.kind == "key" and one.id == caller


def _still(file: Path, before: bytes) -> None:
    if file.read_bytes() != before:
        raise NotDoneError(f"Somebody else has just changed {file}. Nothing was changed here; try again.")


def _replace(file: Path, before: bytes, data: bytes) -> None:
    """Replace ``before`` by ``data`` atomically, keeping the file's owner and permissions. Raises OSError."""
    status = file.stat()
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "wb") as beside:  # noqa: PTH123 - it is open already
            beside.write(data)
            beside.flush()
            os.fchmod(descriptor, status.st_mode & 0o7777)
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fsync(descriptor)
        _still(file, before)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
