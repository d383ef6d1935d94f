"""``countersign audit``: verifies exports of the record, and makes the key that signs it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from console.audit import Report, verify_files
from console.exports import ExportError, Meter, plain, size_of
from gateway.signing import key_id, new_key, public_key, text_of

if TYPE_CHECKING:
    import argparse

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

#: The exit status for what somebody should look at, where nothing is wrong.
LOOK_AT: Final = 3
#: Seconds between two states of the progress bar.
TICK: Final = 0.2
_BAR: Final = 20


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # argparse has no public name
    """Add ``audit`` and its commands."""
    record = commands.add_parser(
        "audit", help="read the record", epilog="Example: ./countersign audit verify record.jsonl"
    )
    group = record.add_subparsers(required=True, metavar="COMMAND")

    verify = group.add_parser(
        "verify",
        help="verify exports: find edits, deletions, insertions and truncation",
        epilog="Example: ./countersign audit verify record.jsonl --has fa08e2d5991d-be24f4ed941bc48b83102598\n"
        "         ./countersign audit verify record.jsonl record.jsonl.1.gz --key record.pub",
    )
    verify.add_argument(
        "exports",
        nargs="+",
        metavar="EXPORT",
        help="lines, or the array that gcloud prints; any order, also .gz; - for standard input",
    )
    verify.add_argument("--has", action="append", default=[], metavar="AUDIT_ID", help="an audit id that must be in it")
    verify.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="PUBLIC_KEY",
        help="check the signatures: a file or the key itself; once for each key there was",
    )
    verify.set_defaults(run=_verify)

    keygen = group.add_parser(
        "keygen",
        help="make a key that signs the record",
        epilog="Example: ./countersign audit keygen record.pem",
    )
    keygen.add_argument("file", type=Path, metavar="FILE", help="where the private key is written; it must not exist")
    keygen.set_defaults(run=_keygen)


def _verify(asked: argparse.Namespace) -> int:
    try:
        keys = [_public_key(text) for text in asked.key]
        meter = Meter(size_of(asked.exports))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    progress = _Progress(meter)
    try:
        report = verify_files(asked.exports, asked.has, keys, meter, progress.show)
    except KeyboardInterrupt:
        progress.interrupted()
        raise
    progress.clear()
    for doubt in report.doubts:
        print(f"look at  {doubt}.")
    for fault in report.faults:
        print(f"WRONG    {fault}.")
    print(_verdict(report, keyed=bool(keys)))
    if report.faults or not report.lines:
        return 1
    return LOOK_AT if report.doubts else 0


def _verdict(report: Report, *, keyed: bool) -> str:
    repeated = f" ({report.repeated} came twice)" if report.repeated else ""
    more = f" {report.more} findings more are not shown." if report.more else ""
    verdict = f"{len(report.faults)} faults" if report.faults else "nothing was edited, removed or inserted"
    told = (
        f"{report.lines} lines{repeated} of {report.instances} instances: {verdict}, {len(report.doubts)} to look at."
    )
    if not report.lines:
        return f"{told} There is no line of the record in it."
    if report.faults or keyed:
        return told + more
    return f"{told}{more}\nNo signature was checked: whoever can rewrite the record can make its hashes fit. " + (
        "Name the public key: --key PUBLIC_KEY."
        if report.checkpoints
        else "The record has none: RECORD_KEY is not set."
    )


def _public_key(text: str) -> Ed25519PublicKey:
    """Read a public key from a file, or from the text itself. Raises :class:`ExportError`."""
    try:
        data = plain(Path(text).read_bytes()) if Path(text).is_file() else text.encode()
        return public_key(data)
    except OSError as error:
        raise ExportError(f"--key {text}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ExportError(
            f"--key {text}: {error}. `countersign audit keygen` shows it when it makes the pair"
        ) from None


def _keygen(asked: argparse.Namespace) -> int:
    private = new_key()
    try:
        with os.fdopen(os.open(asked.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text_of(private))
    except FileExistsError:
        print(f"{asked.file} exists already. Name another file: a key that signed is not to be lost.", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{asked.file}: it cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    public = private.public_key()
    print(text_of(public))
    print(
        f"That is the public key, {key_id(public)}. Keep it, and give it to whoever verifies the record.\n"
        f"{asked.file} holds the private key, for the function alone. Put it into Secret Manager and delete the file:\n"
        f"  gcloud secrets create countersign-record --data-file={asked.file} && rm {asked.file}\n"
        "Then set RECORD_KEY: deploy/deploy --record-key-secret projects/PROJECT/secrets/countersign-record",
        file=sys.stderr,
    )
    return 0


class _Progress:
    """One line on a terminal, and nothing elsewhere."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._shown = meter, sys.stderr.isatty()
        self._next = 0.0
        self._report = Report()

    def show(self, report: Report) -> None:
        """Show how far it came, a few times a second."""
        self._report = report
        if not self._shown or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TICK
        bar = ""
        if self._meter.total:
            part = min(self._meter.read / self._meter.total, 1)
            bar = f"[{'#' * int(part * _BAR):.<{_BAR}}] {part:4.0%}  "
        print(f"\r{bar}{self._so_far()}\033[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make way for the findings."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def interrupted(self) -> None:
        """Say how far it came, for whoever pressed Ctrl-C."""
        self.clear()
        print(f"Interrupted after {self._so_far()}. The rest was not read.", file=sys.stderr)

    def _so_far(self) -> str:
        total = f" of {self._meter.total / 1e6:,.0f}" if self._meter.total else ""
        wrong = f"{len(self._report.faults)} faults" if self._report.faults else "nothing wrong"
        return f"{self._meter.read / 1e6:,.0f}{total} MB, {self._report.lines:,} lines: {wrong} so far"
