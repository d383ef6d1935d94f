"""Stripe's own SDKs: another address and another key, and a program that has Stripe's works here.

All of them call ``/v1/...``. Python's, PHP's and Ruby's take the connection in the address; Node's and Go's take a host
and nothing behind it, so that they need a credential that means one connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from console.recipes import node, python, quoting
from console.recipes.languages import GO, JAVASCRIPT, PHP, PYTHON, RUBY, started, usage
from console.recipes.model import KEY_NAME, RUN, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from console.recipes.model import Holes

#: The operations of ours that are Stripe's, too. They have the same names in each SDK.
SHARED: Final = ("invoices.create", "invoices.retrieve")
#: `make test-clients` does not install the SDKs for PHP, Ruby and Go: it says so where it leaves one out.
WHERE_INSTALLED: Final = "A test runs this as it is copied, where the machine has the SDK."


def _base(holes: Holes) -> str:
    return f"{holes.root}/{'/'.join(holes.connection)}"


def _method(holes: Holes) -> str:
    return holes.operation.rpartition(".")[2]


def _not_shared(holes: Holes) -> str | None:
    if holes.operation not in SHARED:
        return "Stripe's SDKs do not have this call. Take one of the other tabs."
    return None


def _host_alone(holes: Holes) -> str | None:
    """Say why an SDK that takes a host and nothing behind it cannot make this call."""
    if (why := _not_shared(holes)) is not None:
        return why
    if urlsplit(holes.root).path:
        return "This SDK takes a host and nothing behind it, and this address has a path. Take one of the other tabs."
    if not holes.tied:
        return (
            "This SDK takes a host and nothing behind it, so your key has to mean one connection. Ask the operator of "
            "Countersign to tie it to this connection, or take one of the other tabs."
        )
    return None


# ---------------------------------------------------------------- Python


def _python(holes: Holes) -> str:
    ids = "".join(f"{PYTHON.joined(value)}, " for value in holes.ids)
    key = "" if holes.key is None else f"        idempotency_key={PYTHON.joined(holes.key)},\n"
    fields = f"        **{PYTHON.nested(holes.fields, 2)},\n" if holes.fields else ""
    return (
        "import os, sys\n\nimport stripe\n\n"
        f"{python.arguments(holes)}"
        f"stripe.api_base = {PYTHON.literal(_base(holes))}\n"
        f'stripe.api_key = os.environ["{KEY_NAME}"]\n\n'
        "try:\n"
        f"    {holes.noun} = stripe.{holes.noun.capitalize()}.{_method(holes)}(\n"
        f"{f'        {ids.rstrip()}' + chr(10) if ids else ''}{fields}{key}"
        "    )\n"
        "except stripe.StripeError as error:\n"
        "    sys.exit(error.user_message)\n"
        f"print({holes.noun}.id, {holes.noun}.status)\n"
    )


# ---------------------------------------------------------------- Node.js


def _node(holes: Holes) -> str:
    host = urlsplit(holes.root)
    port = f"  port: {host.port},\n" if host.port else ""
    key = "" if holes.key is None else f"    {{ idempotencyKey: {JAVASCRIPT.joined(holes.key)} }},\n"
    ids = "".join(f"    {JAVASCRIPT.joined(value)},\n" for value in holes.ids)
    fields = f"    {JAVASCRIPT.nested(holes.fields, 2)},\n" if holes.fields or key else ""
    return (
        'import Stripe from "stripe";\n\n'
        f"{node.arguments(holes)}"
        f"const stripe = new Stripe(process.env.{KEY_NAME}, {{\n"
        f"  protocol: {JAVASCRIPT.literal(host.scheme)},\n"
        f"  host: {JAVASCRIPT.literal(host.hostname or '')},\n"
        f"{port}"
        "});\n\n"
        "try {\n"
        f"  const {holes.noun} = await stripe.{holes.operation}(\n"
        f"{ids}{fields}{key}"
        "  );\n"
        f"  console.log({holes.noun}.id, {holes.noun}.status);\n"
        "} catch (error) {\n"
        "  console.error(error.message);\n"
        "  process.exitCode = 1;\n"
        "}\n"
    )


# ---------------------------------------------------------------- PHP


def _php(holes: Holes) -> str:
    key = "" if holes.key is None else f"        ['idempotency_key' => {PHP.joined(holes.key)}],\n"
    ids = "".join(f"        {PHP.joined(value)},\n" for value in holes.ids)
    fields = f"        {PHP.nested(holes.fields, 2)},\n" if holes.fields or key else ""
    given = ""
    if holes.inputs:
        said = quoting.php(f"Run it as: {usage(holes, f'php {holes.noun}.php')}")
        given = (
            f"if ($argc !== {len(holes.inputs) + 1}) {{\n"
            f"    fwrite(STDERR, {said} . PHP_EOL);\n"
            "    exit(1);\n"
            "}\n"
            f"[, {', '.join(f'${one.name}' for one in holes.inputs)}] = $argv;\n"
        )
    return (
        "<?php\n"
        "require 'vendor/autoload.php';\n\n"
        f"{given}"
        "$stripe = new \\Stripe\\StripeClient([\n"
        f"    'api_base' => {PHP.literal(_base(holes))},\n"
        f"    'api_key' => getenv('{KEY_NAME}'),\n"
        "    'max_network_retries' => 2,\n"
        "]);\n\n"
        "try {\n"
        f"    ${holes.noun} = $stripe->{holes.operation.replace('.', '->')}(\n"
        f"{ids}{fields}{key}"
        "    );\n"
        "} catch (\\Stripe\\Exception\\ApiErrorException $error) {\n"
        "    fwrite(STDERR, $error->getMessage() . PHP_EOL);\n"
        "    exit(1);\n"
        "}\n"
        f"echo ${holes.noun}->id, ' ', ${holes.noun}->status, PHP_EOL;\n"
    )


# ---------------------------------------------------------------- Ruby


def _ruby(holes: Holes) -> str:
    key = "" if holes.key is None else f"    {{ idempotency_key: {RUBY.joined(holes.key)} }}\n"
    ids = "".join(f"    {RUBY.joined(value)},\n" for value in holes.ids)
    fields = f"    {RUBY.nested(holes.fields, 2)},\n" if holes.fields or key else ""
    given = ""
    if holes.inputs:
        said = quoting.ruby(f"Run it as: {usage(holes, f'ruby {holes.noun}.rb')}")
        given = (
            f"abort {said} unless ARGV.size == {len(holes.inputs)}\n"
            f"{', '.join(one.name for one in holes.inputs)}{',' if len(holes.inputs) == 1 else ''} = "
            "ARGV.map { |one| one.dup.force_encoding('UTF-8') }\n"
        )
    arguments = (ids + fields + key).rstrip(",\n") + "\n"
    return (
        "# encoding: utf-8\n"
        "require 'stripe'\n\n"
        f"{given}"
        "client = Stripe::StripeClient.new(\n"
        f"  ENV.fetch('{KEY_NAME}'),\n"
        f"  api_base: {RUBY.literal(_base(holes))}\n"
        ")\n\n"
        "begin\n"
        f"  {holes.noun} = client.v1.{holes.operation}(\n"
        f"{arguments}"
        "  )\n"
        "rescue Stripe::StripeError => e\n"
        "  abort e.error ? e.error.message : e.message\n"
        "end\n"
        f'puts "#{{{holes.noun}.id}} #{{{holes.noun}.status}}"\n'
    )


# ---------------------------------------------------------------- Go


def _go(holes: Holes) -> str:
    noun, method = holes.noun, _method(holes).capitalize()
    said = GO.literal(f"Run it as: {usage(holes, f'go run {noun}.go')}")
    given = (
        (
            f"\tif len(os.Args) != {len(holes.inputs) + 1} {{\n"
            f"\t\tfmt.Fprintln(os.Stderr, {said})\n"
            "\t\tos.Exit(1)\n"
            "\t}\n"
            f"\t{', '.join(one.name for one in holes.inputs)} := "
            f"{', '.join(f'os.Args[{place}]' for place, _ in enumerate(holes.inputs, 1))}\n"
        )
        if holes.inputs
        else ""
    )
    # AddExtra takes any parameter by its path, of whatever type the SDK's own field would be.
    fields = "".join(
        f"\tparams.AddExtra({GO.literal(path)}, {GO.joined(value)})\n" for path, value in holes.fields.items()
    )
    key = "" if holes.key is None else f"\tparams.SetIdempotencyKey({GO.joined(holes.key)})\n"
    ids = "".join(f", {GO.joined(value)}" for value in holes.ids)
    return (
        "package main\n\n"
        'import (\n\t"context"\n\t"errors"\n\t"fmt"\n\t"os"\n\n\t"github.com/stripe/stripe-go/v86"\n)\n\n'
        "func main() {\n"
        f"{given}"
        "\tclient := stripe.NewClient(\n"
        f'\t\tos.Getenv("{KEY_NAME}"),\n'
        "\t\tstripe.WithBackends(stripe.NewBackendsWithConfig(&stripe.BackendConfig{\n"
        f"\t\t\tURL:           stripe.String({GO.literal(holes.root)}),\n"
        "\t\t\tLeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},\n"
        "\t\t})),\n"
        "\t)\n"
        f"\tparams := &stripe.{noun.capitalize()}{method}Params{{}}\n"
        f"{fields}{key}"
        f"\t{noun}, err := client.V1{holes.operation.partition('.')[0].capitalize()}.{method}"
        f"(context.Background(){ids}, params)\n"
        "\tvar refused *stripe.Error\n"
        "\tif errors.As(err, &refused) {\n"
        "\t\tfmt.Fprintln(os.Stderr, refused.Msg)\n"
        "\t\tos.Exit(1)\n"
        "\t} else if err != nil {\n"
        "\t\tfmt.Fprintln(os.Stderr, err)\n"
        "\t\tos.Exit(1)\n"
        "\t}\n"
        f"\tfmt.Println({noun}.ID, {noun}.Status)\n"
        "}\n"
    )


def _steps(install: str, file: str, command: str) -> Callable[[Holes], tuple[str, ...]]:
    def steps(holes: Holes) -> tuple[str, ...]:
        name = f"{holes.noun}.{file}"
        return (
            f"Install Stripe's SDK: {install}",
            f"Save this as {name}. Put your caller key into the environment variable {KEY_NAME}.",
            f"Run it: {started(holes, f'{command} {name}')}",
        )

    return steps


RECIPES: Final = (
    Recipe(
        "stripe-python", "Stripe's SDK for Python", "code", "text/x-python", RUN,
        _steps("pip install stripe", "py", "python3"), _python, _not_shared,
    ),
    Recipe(
        "stripe-node", "Stripe's SDK for Node.js", "code", "text/javascript", RUN,
        _steps("npm install stripe", "mjs", "node"), _node, _host_alone,
    ),
    Recipe(
        "stripe-php", "Stripe's SDK for PHP", "code", "text/x-php", WHERE_INSTALLED,
        _steps("composer require stripe/stripe-php", "php", "php"), _php, _not_shared,
    ),
    Recipe(
        "stripe-ruby", "Stripe's SDK for Ruby", "code", "text/x-ruby", WHERE_INSTALLED,
        _steps("gem install stripe", "rb", "ruby"), _ruby, _not_shared,
    ),
    Recipe(
        "stripe-go", "Stripe's SDK for Go", "code", "text/x-go", WHERE_INSTALLED,
        _steps("go get github.com/stripe/stripe-go/v86", "go", "go run"), _go, _host_alone,
    ),
)  # fmt: skip
