"""The operator's command: ``./countersign --help``."""

from __future__ import annotations

import os
import signal

# Loading takes a moment, in which Ctrl-C is no reason for a traceback either.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from console import explain, keys, ledger, pasting, verifying, why
from console.documents import opened
from gateway.reloading import read
from gateway.settings import SettingError, settings_of
from policies import compiled, document
from policies.model import DocumentError
from policies.suggestions import closest
from policies.wording import budget_in_words, limit_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policies.model import PolicySet

#: The most bytes that Secret Manager stores in one version.
MAX_SECRET: Final = 64 * 1024


#: What a shell says of a program that SIGINT or SIGPIPE ended.
INTERRUPTED: Final = 128 + signal.SIGINT
CLOSED: Final = 128 + signal.SIGPIPE


class Parser(argparse.ArgumentParser):
    """A parser that suggests the command that was meant, and leaves the lines of an example as they are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = [] if action.choices is None else list(action.choices)
        if known and value not in known:
            close = closest(value, known)
            hint = f"Did you mean {close}?" if close else f"Write one of: {', '.join(known)}."
            raise argparse.ArgumentError(action, f"there is no {value!r}. {hint}")


class _Version(argparse.Action):
    """Prints the version, which only this reads."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """See :class:`argparse.Action`."""
        project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text("utf-8"))["project"]
        print(f"countersign {project['version']}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Each sets ``run``, which returns the exit status."""
    top: argparse.ArgumentParser = Parser(
        prog="countersign",
        description="What an operator of Countersign does by hand.",
        epilog="Example: ./countersign check policies/documents/example.yaml\nThe exit codes are in docs/cli.md.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser(
        "check",
        help="check a policy document and say what it grants",
        epilog="Example: ./countersign check policies/documents/example.yaml",
    )
    check.add_argument("policy", type=Path, metavar="POLICY")
    check.add_argument(
        "--compile", type=Path, metavar="OUT", help="also compile it to OUT, which loads faster; POLICY may name OUT"
    )
    check.add_argument(
        "--settings",
        type=_settings,
        metavar="NAME=VALUE,...",
        help="check these settings with it: what the function would refuse at its start on the cloud",
    )
    check.set_defaults(run=_check)

    recipe = commands.add_parser(
        "recipe",
        help="print a call to paste, which is decided in full and not sent",
        epilog="Example: ./countersign recipe policies/documents/example.yaml https://countersign-abc.a.run.app",
    )
    recipe.add_argument("policy", type=Path, metavar="POLICY")
    recipe.add_argument("url", metavar="URL", help="the function's address")
    recipe.add_argument("--caller", metavar="CALLER", help="who calls; the first that has a key")
    recipe.add_argument("--token", metavar="COMMAND", help="prints an identity token, where Google's IAM asks for one")
    recipe.set_defaults(run=_recipe)

    verifying.add_commands(commands)
    explain.add_command(commands)
    why.add_command(commands)
    keys.add_commands(commands)
    ledger.add_commands(commands)
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit status: 0 success, 1 a problem was found, 2 wrong usage, 3 look at it."""
    asked = parser().parse_args(arguments)
    status: int = asked.run(asked)
    return status


def from_shell(arguments: Sequence[str]) -> int:
    """Run one command and write all that it prints. Returns the exit status, as docs/cli.md has them."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            return main(arguments)
        finally:
            print(end="", flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return CLOSED
    except UnicodeEncodeError:  # of the arguments: a file is decoded where it is read
        print("What you wrote behind the command is not UTF-8 all through. Write it in UTF-8.", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk
        _discard_output()
        print(f"It could not be written: {error.strerror}.", file=sys.stderr)
        return 1


def _discard_output() -> None:
    """Let what could not be written go; Python would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check(asked: argparse.Namespace) -> int:
    try:
        data = opened(asked.policy)
        if asked.settings is None:
            policy_set = read(data, str(asked.policy))
        else:
            policy_set = settings_of({"K_SERVICE": "countersign", **asked.settings}).judge(data, str(asked.policy))
    except (DocumentError, SettingError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(_told(policy_set)))
    if compiled.recognised(data):
        warned = compiled.warnings(policy_set, str(asked.policy), time.time())
    else:
        warned = document.warnings(data.decode(), str(asked.policy), time.time())
    for warning in warned:
        print(warning)
    return 0 if asked.compile is None else _compile(asked.policy, data, policy_set, asked.compile)


def _settings(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError("write NAME=VALUE, several with commas between them")
    return {name: value for name, _, value in pairs}


def _recipe(asked: argparse.Namespace) -> int:
    try:
        policy_set = read(opened(asked.policy), str(asked.policy))
        print(pasting.recipe(policy_set, asked.policy, asked.url, caller=asked.caller, token=asked.token))
    except (DocumentError, pasting.NoRecipeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _compile(file: Path, data: bytes, policy_set: PolicySet, out: Path) -> int:
    """Compile a valid document to ``out``, atomically. Only a compiled policy is ever overwritten."""
    made = compiled.write(policy_set)
    try:
        if compiled.recognised(data):
            problem = f"{file} is compiled already. Name the document that it was compiled from"
        elif compiled.read(made, str(out)) != policy_set:
            problem = f"{file} could not be compiled: the result has another meaning. Use the document itself"
        elif out.exists() and not compiled.recognised(out.read_bytes()):
            problem = f"{out} exists and is not a compiled policy. Name another file"
        else:
            beside = out.with_name(f".{out.name}.new")
            beside.write_bytes(made)
            beside.replace(out)
            problem = None
    except OSError as error:
        problem = f"{out}: it cannot be written ({error.strerror})"
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    print(f"It was compiled to {out}: {len(policy_set.names)} callers in {len(made)} bytes.")
    if len(made) > MAX_SECRET:
        print("That is more than the 64 KiB of a Secret Manager version: deploy it as a file.")
    return 0


def _told(policy_set: PolicySet) -> list[str]:
    told = [f"The policy is valid (digest {policy_set.digest[:16]})."]
    seen: set[str] = set()
    for caller in policy_set.callers.values():
        if caller.id in seen:
            continue
        seen.add(caller.id)
        may = "is paused, and otherwise may call" if caller.paused else "may call"
        often = " and ".join(map(limit_in_words, caller.limits))
        money = "".join(f", {budget_in_words(budget)}" for budget in caller.budgets)
        told.append(f"{caller.id} ({caller.owner}), {often}{money}, {may}:")
        for entitlement in caller.entitlements.values():
            ceiling = entitlement.connection.ceiling
            shared = "" if ceiling is None else f" ({limit_in_words(ceiling)}, of all callers together)"
            told.append(f"  {entitlement.operation.id} on {entitlement.connection.id}{shared}")
            told.append(f"    sends     {', '.join(entitlement.rules)}")
            told.append(f"    receives  {', '.join(entitlement.response_fields)}")
    return told


if __name__ == "__main__":
    sys.exit(from_shell(sys.argv[1:]))
