"""What each process makes for itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from gateway.forks import PerProcess, apart
from sandbox.__main__ import ROOT
from tests.gateway.conftest import at_once


def test_fifty_threads_make_one_value() -> None:
    def make() -> object:
        time.sleep(0.05)
        return object()

    values = PerProcess(make)
    assert values.made() is None
    assert len(set(at_once(50, lambda _: values.get()))) == 1
    assert values.made() is values.get()


def test_dropped_value_is_handed_back_and_made_anew() -> None:
    values = PerProcess(object)
    first = values.get()
    assert values.drop() is first
    assert values.drop() is None
    assert values.get() is not first


def test_value_that_could_not_be_made_is_made_with_the_next_use() -> None:
    left = [None, ValueError("once")]

    def make() -> str:
        error = left.pop()
        if error is not None:
            raise error
        return "made"

    values = PerProcess(make)
    with pytest.raises(ValueError, match="once"):
        values.get()
    assert values.made() is None
    assert values.get() == "made"


FORKED = """
import os
from gateway.forks import PerProcess, apart
values = PerProcess(os.getpid)
parent = values.get()
child = os.fork()
if child == 0:
    assert values.made() is None and values.drop() is None
    os._exit(values.get() != os.getpid())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert values.made() == parent == os.getpid()
"""


def test_forked_process_makes_its_own_and_never_sees_its_parents() -> None:
    subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, env={"PATH": os.environ["PATH"]}, check=True)


APART = """
import os, sys
from gateway.forks import apart
from gateway.kept import GoneError

def refused():
    raise GoneError("no such secret")

def killed():
    os.kill(os.getpid(), 9)

assert apart(os.getpid) != os.getpid() and apart(os.getppid) == os.getpid()
assert len(apart(lambda: bytes(3_000_000))) == 3_000_000
for work, error in ((refused, GoneError), (killed, ChildProcessError)):
    try:
        apart(work)
    except error as caught:
        print(type(caught).__name__, caught)
assert sys.stdout.write("written once ") is not None and apart(lambda: None) is None
try:
    os.wait()
except ChildProcessError:
    print("and no child left")
"""


def test_work_done_apart_brings_its_value_or_its_exception() -> None:
    run = subprocess.run(
        [sys.executable, "-c", APART], cwd=ROOT, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True
    )
    assert run.stdout.decode().splitlines() == [
        "GoneError no such secret", "ChildProcessError ", "written once and no child left",
    ]  # fmt: skip
    assert run.stderr == b""


def test_process_with_threads_is_not_forked() -> None:
    assert at_once(2, lambda _: apart(os.getpid)) == [os.getpid()] * 2
