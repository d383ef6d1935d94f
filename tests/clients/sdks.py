"""Stripe's official SDKs, a row each: how a program with it is run, and what it calls its errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from sandbox.__main__ import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INSTALLED: Final = ROOT / ".venv" / "clients"
"""A folder for each SDK. `make test-clients` fills those of PyPI and npm."""
KINDS: Final = (
    "Authentication",
    "Permission",
    "InvalidRequest",
    "Idempotency",
    "Card",
    "RateLimit",
    "API",
    "APIConnection",
)


@dataclass(frozen=True)
class Sdk:
    """How to run a program with one SDK; what it calls its errors, by ``KINDS``; how to get it."""

    folder: Path
    needs: str
    """What is in the folder once the SDK is installed."""
    command: tuple[str, ...]
    suffix: str
    errors: Mapping[str, str]
    get: str
    paths: tuple[str, ...] = ("", "/ft-4/stripe-1")
    """What it takes behind the host: nothing, which is for a key that is tied to a connection; or the connection."""
    repeats_lost_calls: bool = True
    """By itself, where a connection ended without an answer."""
    repeats_answered_calls: bool = True
    """By itself, where the answer says `Stripe-Should-Retry: true`."""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def needed(self) -> pytest.MarkDecorator:
        """Leaves a test out where this machine lacks the language or the SDK."""
        found = shutil.which(self.command[0]) and (self.folder / self.needs).exists()
        return pytest.mark.skipif(not found, reason=self.get)

    def run(
        self, program: Path, given: str = "", *, arguments: Sequence[str] = (), key: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the SDK's folder, with what it is given on stdin, and the caller key in its environment."""
        # Nothing of our own environment, such as a proxy. Go keeps what it has compiled below HOME.
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            [*self.command, program, *arguments],
            cwd=self.folder,
            env=environ | self.environ | ({"COUNTERSIGN_KEY": key} if key else {}),
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,  # Go compiles the SDK when it is first run
        )


def named(pattern: str, **others: str) -> dict[str, str]:
    """Name each of ``KINDS`` by a pattern, such as ``Stripe{}Error``, but for those named apart."""
    return {kind: others.get(kind, pattern.format(kind)) for kind in KINDS}


def missing(language: str, what_to_do: str) -> str:
    return f"Stripe's SDK for {language} is not on this machine. To run its tests: {what_to_do}"


SDKS: Final = {
    "python": Sdk(
        folder=ROOT,
        needs="main.py",  # it is in the environment of the tests
        command=(sys.executable,),
        suffix=".py",
        errors=named("{}Error"),
        get="",
    ),
    "python5": Sdk(
        folder=INSTALLED / "python5",
        needs="stripe",
        command=(sys.executable,),
        suffix=".py",
        errors=named("{}Error"),
        get=missing("Python, version 5,", "make test-clients"),
        environ={"PYTHONPATH": str(INSTALLED / "python5")},
    ),
    "node": Sdk(
        folder=INSTALLED / "node",
        needs="node_modules/stripe",
        command=("node",),
        suffix=".cjs",
        errors=named("Stripe{}Error"),
        get=missing("Node.js", "install Node.js 20 or newer with npm, then make test-clients"),
        paths=("",),
        environ={"NODE_PATH": str(INSTALLED / "node" / "node_modules")},
    ),
    "php": Sdk(
        folder=INSTALLED / "php",
        needs="vendor/autoload.php",
        command=("php",),
        suffix=".php",
        errors=named("{}Exception", API="UnknownApiErrorException", APIConnection="ApiConnectionException"),
        repeats_lost_calls=False,
        get=missing(
            "PHP",
            "install PHP with its curl and mbstring, and Composer, then mkdir -p .venv/clients/php && "
            "composer require --working-dir=.venv/clients/php stripe/stripe-php:21.0.0",
        ),
    ),
    "ruby": Sdk(
        folder=INSTALLED / "ruby",
        needs="gems",
        command=("ruby",),
        suffix=".rb",
        errors=named("Stripe::{}Error"),
        get=missing("Ruby", "install Ruby, then gem install --install-dir .venv/clients/ruby stripe:19.5.0"),
        environ={"GEM_PATH": str(INSTALLED / "ruby")},
    ),
    "go": Sdk(
        folder=INSTALLED / "go",
        needs="go.mod",
        command=("go", "run"),
        suffix=".go",
        # One class for all, with a type of Stripe's in it, and the status beside it.
        errors={
            "Authentication": "invalid_request_error",
            "Permission": "invalid_request_error",
            "InvalidRequest": "invalid_request_error",
            "Idempotency": "idempotency_error",
            "Card": "card_error",
            "RateLimit": "rate_limit_error",
            "API": "api_error",
        },
        repeats_answered_calls=False,
        get=missing(
            "Go",
            "install Go 1.22 or newer, then mkdir -p .venv/clients/go && cd .venv/clients/go && "
            "go mod init clients && go get github.com/stripe/stripe-go/v86@v86.2.0",
        ),
        paths=("",),
    ),
}
