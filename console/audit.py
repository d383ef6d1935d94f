"""Verifies an export of the record: finds any edit, deletion and insertion, and what may be missing at its ends.

Each process writes one chain (see ``gateway.chain``). Its lines are taken in whatever order they come, and put together
into runs: stretches of consecutive sequence numbers. So an order by itself proves nothing, and an entry may come twice.
A truncated chain is still consistent, so truncation is found by what is missing: the outcome of an intent, the ``stop``
line, or the line of an audit id that a caller holds.

Memory does not grow with the export: of each line, its hash alone is kept, in a temporary file.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from array import array
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, get_args

import msgspec

from console.exports import LINE, NESTED, UNREADABLE, BrokenError, ExportError, ForgedError, Meter, content_of, entries
from console.lookup import AUDIT_ID, whole_numbers
from gateway import lines as form
from gateway.chain import GENESIS, HASH_DIGITS, audit_id_of, line_hash, signed
from gateway.signing import key_id, verifies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

#: So many findings of one level are kept; a hundred say as much as a million.
MAX_FINDINGS: Final = 1000
#: Hashes are written to the temporary file by so many, and only for exports of more lines than its memory holds.
BLOCK: Final = 128
SPOOLED: Final = 2 * 1024 * 1024
#: An export by time or in blocks has far fewer stretches of one chain than this.
MAX_RUNS: Final = 64

#: What a line has before our own members. In a string its quotation marks would be escaped.
_CONTENT: Final = b',"countersign":{'
#: The one character of ASCII that JSON writers do not agree about.
_DELETE: Final = b"\x7f"
#: What stands behind all that people read of a line. In a string it would be escaped, too.
_TIME: Final = b',"time":"'
#: The labels of ours. Each repeats a member.
LABELED: Final = ("caller", "connection", "operation", "result", "reason")
#: How much of a line stands behind what is hashed, but for a brace.
_BEHIND: Final = len(f',"hash":"{GENESIS}","audit_id":"{audit_id_of("0" * 12, GENESIS)}"}}}}')
#: Members of ours, in the order of :class:`_Line`.
_LOOKED_AT: Final = ("instance", "sequence", "prev", "kind", "intent")

_INSTANCE = re.compile(r"[0-9a-f]{12}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass
class Report:
    """The findings. ``faults`` prove tampering or loss; ``doubts`` may have innocent explanations."""

    lines: int = 0
    instances: int = 0
    repeated: int = 0
    """Lines that came once more; they are not in ``lines``."""
    checkpoints: int = 0
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    more: int = 0
    """Findings beyond :data:`MAX_FINDINGS`, of either level."""

    def fault(self, text: str) -> None:
        """Add what proves tampering or loss."""
        self._add(self.faults, text)

    def doubt(self, text: str) -> None:
        """Add what somebody should look at."""
        self._add(self.doubts, text)

    def _add(self, findings: list[str], text: str) -> None:
        if len(findings) < MAX_FINDINGS:
            findings.append(text)
        else:
            self.more += 1


def verify(lines: Iterable[str], anchors: Iterable[str] = (), keys: Iterable[Ed25519PublicKey] = ()) -> Report:
    """Verify the lines of one export. See :class:`Verifier`."""
    verifier = Verifier(anchors, keys)
    for number, line in enumerate(lines, 1):
        verifier.take("", number, line.rstrip("\n").encode("utf-8", "surrogateescape"))
    return verifier.report()


def verify_files(
    paths: Iterable[str],
    anchors: Iterable[str],
    keys: Iterable[Ed25519PublicKey],
    meter: Meter,
    tick: Callable[[Report], None],
) -> Report:
    """Verify files together. ``tick`` is called after each chunk. What cannot be read to its end is a doubt."""
    verifier = Verifier(anchors, keys)
    read = meter.read
    for path in paths:
        try:
            for number, raw in entries(path, meter):
                verifier.take(path, number, raw)
                if meter.read != read:
                    read = meter.read
                    tick(verifier.so_far)
        except ExportError as error:
            verifier.so_far.doubt(str(error))
    return verifier.report()


class Verifier:
    """Takes the entries of one export, or of several, in any order, and reports what it found.

    ``anchors`` are audit ids that callers hold, whose lines must be there. ``keys`` are the public keys that may have
    signed; without one, signatures are not checked.
    """

    def __init__(self, anchors: Iterable[str] = (), keys: Iterable[Ed25519PublicKey] = ()) -> None:
        self.so_far = Report()
        self._keys = {key_id(key): key for key in keys}
        self._anchors = list(anchors)
        ids = map(AUDIT_ID.fullmatch, self._anchors)
        self._awaited = {match["instance"] + match["head"]: -1 for match in ids if match is not None}
        self._instances: dict[str, _Instance] = {}
        self._hashes = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115 - it is closed with the verifier

    def take(self, file: str, number: int, raw: bytes) -> None:
        """Take one entry: the bytes of a JSON value that begins at this line of the file."""
        place = file, number
        line = _as_written(raw)
        if line is None:
            line = self._read(raw, place)
            if line is None:
                return
        name, sequence = line.instance, line.sequence
        instance = self._instances.get(name) if isinstance(name, str) else None
        if instance is None:
            instance = self._new(name)
        if instance is None:
            self.so_far.lines += 1
            self.so_far.fault(f"{_at(place)}: it does not say which instance wrote it")
        elif type(sequence) is not int or not 0 <= sequence < 2**53:
            self.so_far.lines += 1
            self.so_far.fault(f"{_at(place)}: it does not say its place in the chain of instance {instance.name}")
        else:
            self._link(instance, sequence, place, line)

    def _read(self, raw: bytes, place: Place) -> _Line | None:
        """Read an entry that is not written as we do; None if there is no line of the record in it."""
        try:
            line = _read(raw) if raw.strip() else None
        except BrokenError:
            self.so_far.doubt(
                f"{_at(place)}: this is not a whole line. A full disk or a killed process leaves such a stump; if "
                "somebody cut a line of the record, it is reported as missing"
            )
            return None
        except ForgedError as error:
            self.so_far.fault(f"{_at(place)}: {error}")
            return None
        if line is not None and line.stump:
            self.so_far.doubt(f"{_at(place)}: it begins with the stump of another line, as a full disk leaves it")
        return line

    def _new(self, name: object) -> _Instance | None:
        if not isinstance(name, str) or not _INSTANCE.fullmatch(name):
            return None
        instance = self._instances[name] = _Instance(name, self._hashes)
        return instance

    def _link(self, instance: _Instance, sequence: int, place: Place, line: _Line) -> None:
        digest, report = line.digest, self.so_far
        if digest != line.claimed:
            report.fault(f"{_at(place)}: {instance.the(sequence)} was changed after it was written; its hash differs")
            # The line after it has the hash that it claims; one fault is enough.
            digest = line.claimed if isinstance(line.claimed, str) and _HASH.fullmatch(line.claimed) else digest
        elif line.audit_id != f"{instance.name}-{(line.intent or digest)[:HASH_DIGITS]}":
            report.fault(f"{_at(place)}: the audit id of {instance.the(sequence)} was changed")
        if not instance.take(sequence, line.prev, digest, place):
            report.repeated += 1
            return
        report.lines += 1
        if self._awaited and (name := instance.name + digest[:HASH_DIGITS]) in self._awaited:
            self._awaited[name] = sequence
        if line.intent is not None:
            instance.ended(str(line.intent))
        else:
            self._note(instance, sequence, place, line, digest)

    def _note(self, instance: _Instance, sequence: int, place: Place, line: _Line, digest: str) -> None:
        match line.kind:
            case "intent":
                instance.sent(digest[:HASH_DIGITS], sequence, place)
            case "stop" | "counted" as kind:
                instance.marks[kind] = max(instance.marks[kind], sequence)
            case "checkpoint":
                self.so_far.checkpoints += 1
                if self._keys:
                    self._checkpoint(instance, sequence, place, line)

    def _checkpoint(self, instance: _Instance, sequence: int, place: Place, line: _Line) -> None:
        content: Mapping[str, Any] = msgspec.to_builtins(line.content)
        key = self._keys.get(str(content.get("key")))
        if key is None:
            self.so_far.fault(
                f"{_at(place)}: this checkpoint was signed with another key, {_shown(content.get('key'))}. If the "
                "record key was rotated, name that time's public key with another --key; else it is forged"
            )
        elif not verifies(key, content.get("signature"), signed(*line.read, content)):
            self.so_far.fault(
                f"{_at(place)}: the signature of this checkpoint does not match: a line before it was changed, removed "
                "or inserted, and the hashes after it were made to fit"
            )
        else:
            instance.marks["signed"] = max(instance.marks["signed"], sequence)
            if content.get("last") is True:
                instance.marks["last"] = max(instance.marks["last"], sequence)

    def report(self) -> Report:
        """Report what was found, after all entries were taken."""
        report = self.so_far
        report.instances = len(self._instances)
        for instance in self._instances.values():
            if not instance.runs:  # none of its lines says its place
                continue
            faults = list(instance.breaks())
            for fault in faults:
                report.fault(fault)
            report.lines -= instance.repeated
            report.repeated += instance.repeated
            for doubt in instance.doubts(keyed=bool(self._keys), whole=not faults):
                report.doubt(doubt)
        for anchor in self._anchors:
            self._judge(anchor)
        self._hashes.close()
        return report

    def _judge(self, anchor: str) -> None:
        match = AUDIT_ID.fullmatch(anchor)
        if match is None:
            self.so_far.fault(f"audit id {_shown(anchor)}: it is not one of the record's. Copy all of it")
            return
        name, head = match["instance"], match["head"]
        instance, sequence = self._instances.get(name), self._awaited[name + head]
        if head == GENESIS[:HASH_DIGITS]:
            self.so_far.doubt(f"audit id {anchor}: its instance could not write a line yet, or its lines are missing")
        elif instance is None or sequence < 0:
            missing = "the line that stood before it" if match["batch"] or match["unwritten"] else "its line"
            self.so_far.fault(f"audit id {anchor}: {missing} is missing")
        elif match["batch"] and instance.marks["counted"] <= sequence:
            self.so_far.doubt(
                f"audit id {anchor}: this call was counted, not written, and the line with the count is not here. "
                "The instance was killed within that second, or lines are missing at its end"
            )


#: A file, and the line in it.
Place = tuple[str, int]


class _Line(msgspec.Struct):  # which is made faster than a dataclass
    """What is looked at of a line. ``digest`` is the hash that it should have, ``claimed`` the one that it has."""

    instance: Any
    sequence: Any
    prev: Any
    kind: Any
    intent: Any
    digest: str
    claimed: Any
    audit_id: Any
    content: Any
    """All of it, and what people read of it: for a checkpoint."""
    read: tuple[Any, Any]
    stump: bool = False


def _written() -> type[Any]:
    """Return the type of a line as we write it: all members that there may be, in their order."""
    names = {field.encode_name for kind in get_args(form.Ours) for field in msgspec.structs.fields(kind)}
    last = ("hash", "audit_id")
    content = _struct("Content", dict.fromkeys([*sorted((names | {"kind"}).difference(last)), *last], Any))
    labels = _struct("Labels", dict.fromkeys(LABELED, str))
    members = {field.name: str for field in msgspec.structs.fields(form.Entry)}
    order = ("severity", "message", "time", "trace", "span", "labels", "countersign")
    types = {name: {"labels": labels, "countersign": content}.get(name, members[name]) for name in order}
    rename = {field.name: field.encode_name for field in msgspec.structs.fields(form.Entry)}
    return _struct("Entry", types, rename)


def _struct(name: str, members: Mapping[str, Any], rename: Mapping[str, str] | None = None) -> type[Any]:
    optional = [(name, kind | None if kind is not Any else Any, None) for name, kind in members.items()]
    return msgspec.defstruct(name, optional, rename=rename, forbid_unknown_fields=True, omit_defaults=True)


def _no_float(digits: str) -> float:
    """Refuse what no line of ours has, and what is hashed in another way than it may be written."""
    raise ValueError(digits)


_decode_written: Final = msgspec.json.Decoder(_written(), float_hook=_no_float).decode
_encode_written: Final = msgspec.json.Encoder(order="deterministic").encode


def _as_written(raw: bytes) -> _Line | None:
    """Read a line if its bytes are exactly those that we write, which no two readers read differently.

    Most are, and the general way takes several times as long. None: it is for that way, which may find a fault.
    """
    if not raw.startswith(LINE):
        return None
    try:
        entry = _decode_written(raw)
        if _encode_written(entry) != raw or not raw.isascii() or _DELETE in raw:
            return None
    except UNREADABLE:
        return None
    content, begins = entry.countersign, raw.find(_CONTENT) + len(_CONTENT) - 1
    digest = hashlib.sha256(raw[begins:-_BEHIND] + b"}" + raw[len(LINE) - 1 : raw.find(_TIME)]).hexdigest()
    if content is None or digest != content.hash or _other_labels(entry.labels, content):
        return None
    return _Line(
        content.instance,
        content.sequence,
        content.prev,
        content.kind,
        content.intent,
        digest,
        digest,
        content.audit_id,
        content,
        (entry.severity, entry.message),
    )


def _other_labels(labels: Any, content: Any) -> bool:
    """Whether a label says something else than the line."""
    said = [(getattr(labels, name), getattr(content, name)) for name in LABELED] if labels is not None else []
    return any(label is not None and label != member for label, member in said)


def _read(raw: bytes) -> _Line | None:
    """Read any entry; None for another program's. Raises :class:`BrokenError` and :class:`ForgedError`."""
    found, stump = content_of(raw)
    if found is None:
        return None
    try:
        content = whole_numbers(found.content)
        claimed, audit_id = content.pop("hash", None), content.pop("audit_id", None)
        digest = line_hash(found.severity, found.message, content)
    except RecursionError:
        raise ForgedError(NESTED) from None
    for name in LABELED:
        if name in found.labels and found.labels[name] != content.get(name):
            raise ForgedError(f"its label {name} does not say what the line says")
    looked_at = [content.get(name) for name in _LOOKED_AT]
    read = found.severity, found.message
    return _Line(*looked_at, digest, claimed, audit_id, content, read, stump is not None)  # type: ignore[call-arg]  # five


class _Hashes:
    """The hashes of consecutive lines, 32 bytes each, in a file that is shared."""

    __slots__ = ("_blocks", "_file", "_rest")

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._blocks, self._rest = file, array("Q"), list[str]()

    def append(self, digest: str) -> None:
        self._rest.append(digest)
        if len(self._rest) == BLOCK:
            self._blocks.append(self._file.seek(0, 2))
            self._file.write(bytes.fromhex("".join(self._rest)))
            self._rest.clear()

    def __getitem__(self, place: int) -> bytes:
        block, place = divmod(place, BLOCK)
        if block == len(self._blocks):
            return bytes.fromhex(self._rest[place])
        self._file.seek(self._blocks[block] + 32 * place)
        return self._file.read(32)


class _Run:
    """Consecutive lines of one chain. Each has the hash of the one before it."""

    __slots__ = (
        "_above", "_base", "_below", "first", "first_at", "first_hash", "first_prev", "last", "last_at", "last_hash",
    )  # fmt: skip

    def __init__(self, sequence: int, prev: object, digest: str, place: Place, file: IO[bytes]) -> None:
        self._base = self.first = self.last = sequence
        self.first_prev, self.first_hash, self.last_hash = prev, digest, digest
        self.first_at = self.last_at = place
        self._above, self._below = _Hashes(file), _Hashes(file)
        self._above.append(digest)

    def takes(self, sequence: int, prev: object, digest: str, place: Place) -> bool:
        """Take a line that follows the last, or that the first follows."""
        if sequence == self.last + 1 and prev == self.last_hash:
            self.last, self.last_hash, self.last_at = sequence, digest, place
            self._above.append(digest)
        elif sequence == self.first - 1 and digest == self.first_prev:
            self.first, self.first_prev, self.first_hash, self.first_at = sequence, prev, digest, place
            self._below.append(digest)
        else:
            return False
        return True

    def hash_of(self, sequence: int) -> bytes:
        if sequence >= self._base:
            return self._above[sequence - self._base]
        return self._below[self._base - 1 - sequence]


class _Instance:
    """The chain of one process, as far as it was seen."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self._file = name, file
        self.runs: list[_Run] = []
        self._current: _Run | None = None
        #: By the sequence that would follow them at either end, those runs that are not the current one.
        self._ends: dict[int, _Run] = {}
        self._order = _Order()
        #: Lines that were taken before, among which the current run began.
        self._again = range(0)
        self._open: dict[str, tuple[int, Place]] = {}
        self._ended: set[str] = set()
        #: The sequence of the ``stop`` line, and of the last ``counted`` line, checkpoint, and last checkpoint of all.
        self.marks = {"stop": -1, "counted": -1, "signed": -1, "last": -1}
        self.repeated = 0
        """Lines that came once more, apart from those right behind the first."""

    def the(self, sequence: int) -> str:
        return f"sequence {sequence} of instance {self.name}"

    def take(self, sequence: int, prev: object, digest: str, place: Place) -> bool:
        """Take a line. Return False for one that was just taken."""
        run = self._current
        if run is not None:
            if (sequence == run.last and digest == run.last_hash) or (
                sequence == run.first and digest == run.first_hash
            ):
                return False
            if run.takes(sequence, prev, digest, place):
                order = self._order
                if sequence == order.expected and place[0] == order.file:
                    order.expected += order.direction
                elif sequence not in self._again:
                    order.step(sequence, place)
                return True
        # What comes once more is not out of order. Past so many runs the order is lost anyway.
        known = (range(run.first, run.last + 1) for run in self.runs[:MAX_RUNS])
        self._again = next((lines for lines in known if sequence in lines), range(0))
        if not self._again:
            self._order.step(sequence, place)
        self._current = self._run_for(sequence, prev, digest, place)
        return True

    def _run_for(self, sequence: int, prev: object, digest: str, place: Place) -> _Run:
        if self._current is not None:
            self._ends[self._current.last + 1] = self._ends[self._current.first - 1] = self._current
        run = self._ends.pop(sequence, None)
        if run is None or not run.takes(sequence, prev, digest, place):
            run = _Run(sequence, prev, digest, place, self._file)
            self.runs.append(run)
        return run

    def sent(self, intent: str, sequence: int, place: Place) -> None:
        """Note an intent; its outcome may have come before it."""
        if intent in self._ended:
            self._ended.discard(intent)
        else:
            self._open[intent] = sequence, place

    def ended(self, intent: str) -> None:
        if self._open.pop(intent, None) is None:
            self._ended.add(intent)

    def breaks(self) -> Iterator[str]:
        """Yield what does not hang together."""
        self.runs.sort(key=lambda run: (run.first, -run.last))
        before = self.runs[0]
        if before.first == 0 and before.first_prev != GENESIS:
            yield f"{_at(before.first_at)}: {self.the(0)} names a line before it, and there is none"
        for run in self.runs[1:]:
            if run.first > before.last + 1:
                yield _gap(self.name, before, run)
            elif run.first == before.last + 1:
                if run.first_prev != before.last_hash:
                    yield (
                        f"{_at(run.first_at)}: {self.the(run.first)} does not follow the line before it, "
                        f"{_at(before.last_at)}: one of the two was put in another's place"
                    )
            else:
                both = min(run.last, before.last)
                self.repeated += both - run.first + 1
                if run.hash_of(both) != before.hash_of(both):
                    yield (
                        f"{_at(run.first_at)}: two different lines claim to be {self.the(both)}; the other is between "
                        f"{_at(before.first_at)} and {_at(before.last_at)}"
                    )
            if run.last > before.last:
                before = run
        if 0 <= self.marks["stop"] < before.last:
            stop = self.marks["stop"]
            yield f"{_at(before.last_at)}: instance {self.name} goes on after its stop line, sequence {stop}"

    def doubts(self, *, keyed: bool, whole: bool) -> Iterator[str]:
        """Yield what may be innocent; after :meth:`breaks`. Where lines are missing, their order says nothing."""
        first, last = self.runs[0], max(self.runs, key=lambda run: run.last)
        if first.first > 0:
            yield (
                f"{_at(first.first_at)}: instance {self.name} begins at sequence {first.first}. The lines before it "
                "are in another export, or were removed"
            )
        self._order.close()
        if self._order.astray and whole:
            yield (
                f"{_at(self._order.astray[0])}: lines of instance {self.name} stand out of order from here on, in "
                f"{len(self._order.astray)} places. None is lost by it: the clock was set back and the export is "
                "sorted by time, or somebody moved them"
            )
        for intent, (sequence, place) in self._open.items():
            if sum(run.first <= sequence <= run.last for run in self.runs) == 1:
                yield (
                    f"{_at(place)}: intent {audit_id_of(self.name, intent)} has no outcome. The call was cut off, is "
                    "still running, or its outcome was removed"
                )
        if self.marks["stop"] < 0:
            yield (
                f"{_at(last.last_at)}: instance {self.name} has no stop line after sequence {last.last}. It is still "
                "running, was killed, or lines are missing at its end" + (self._unsigned(last) if keyed else "")
            )
        elif keyed and self.marks["last"] != self.marks["stop"] - 1:
            yield (
                f"{_at(last.last_at)}: the stop line of instance {self.name} is not signed. The key could not be read "
                "then, or lines are missing before it" + self._unsigned(last)
            )

    def _unsigned(self, last: _Run) -> str:
        if self.marks["signed"] < 0:
            return ". No line of it is signed"
        unsigned = last.last - self.marks["signed"]
        return (
            f". {unsigned} after its last checkpoint, sequence {self.marks['signed']}, are not signed"
            if unsigned
            else ""
        )


class _Order:
    """Whether a chain's lines came in blocks, forwards or backwards. A moved line is a block by itself, or turned."""

    def __init__(self) -> None:
        self.file, self._begin = "", ("", 0)
        self.direction = self.expected = 0
        """Of the block at hand: 1 or -1, and the sequence that would go on with it; of a line alone: 0, and its own."""
        #: The direction of the file's first block, and how many blocks it has.
        self._way = self._blocks = 0
        self.astray: list[Place] = []

    def step(self, sequence: int, place: Place) -> None:
        """Take a line that does not go on with the block, or is its second; unless it comes once more."""
        here, step = place[0] == self.file and self._blocks > 0, sequence - self.expected
        if here and not self.direction and abs(step) == 1:
            self.direction, self.expected = step, sequence + step
            return
        self.close(more=here)
        if not here:
            self.file, self._way, self._blocks = place[0], 0, 0
        self._begin, self.direction, self.expected = place, 0, sequence
        self._blocks += 1

    def close(self, *, more: bool = False) -> None:
        """Judge the block at hand; ``more`` if others follow in its file."""
        self._way = self._way or self.direction
        alone = not self.direction and (more or self._blocks > 1)
        if (alone or (self.direction and self.direction != self._way)) and len(self.astray) < MAX_FINDINGS:
            self.astray.append(self._begin)


def _gap(name: str, before: _Run, after: _Run) -> str:
    first, last = before.last + 1, after.first - 1
    missing = f"sequence {first} is" if first == last else f"sequences {first} to {last} are"
    windows = ""
    if before.last_at[0] != after.first_at[0]:
        windows = ". If these files are exports of two windows with time between them, verify each by itself"
    return f"instance {name}: {missing} missing, between {_at(before.last_at)} and {_at(after.first_at)}{windows}"


def _at(place: Place) -> str:
    file, line = place
    match file:
        case "":
            return f"line {line}"
        case "-":
            return f"standard input, line {line}"
    return f"{file}:{line}"


def _shown(value: object) -> str:
    """Return what a forger may have written, so that a terminal can show it."""
    return ascii(value)[:80]
