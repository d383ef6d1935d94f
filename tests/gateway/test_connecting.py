"""Redis as operators run it: TLS with a CA of one's own, a user with the least ACL, a cluster, and a name or a network
that does not answer.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.crc import key_slot

from gateway.settings import SettingError, ledger_of, load
from gateway.stores import connecting
from gateway.stores.redis import _ADMIT, _ADVANCE, _LOOK, _REPLACE, _SETTLE, PREFIX, Redis
from policies.model import Answer, Outcome
from policies.outcomes import Reply
from policies.refusals import StoreUnavailable
from sandbox.ports import free_port
from sandbox.redis_server import RedisServer, program
from tests.conftest import policy, running
from tests.gateway.conftest import admit, at_once, granted
from tests.wire import listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.secret_manager import SecretManager

pytestmark = [pytest.mark.stores, pytest.mark.usefixtures("patience")]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "stores.md"
ANSWER = Answer(200, b'{"id":"in_1"}')
SUCCEEDED = Reply(Outcome.SUCCEEDED, answer={"id": "in_1"})
PASSWORD = "s3cret#of?the/store@"


@pytest.fixture
def impatience(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than the function does: for who never answers."""
    monkeypatch.setattr(connecting.Client, "STEP", connecting.STEP_SECONDS)


def refused(store: Redis) -> str | None:
    with pytest.raises(StoreUnavailable) as caught:
        admit(store, granted())
    return caught.value.note


@contextlib.contextmanager
def trickling(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Have each connection be served by ``serve``. Yield the port."""
    with listening(lambda client, _: serve(client)) as origin:
        yield int(origin.rpartition(":")[2])


# ---------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Certificates:
    """A CA, a server's certificate that it signed, and the key of that: paths, PEM."""

    ca: Path
    certificate: Path
    key: Path


def certificates(folder: Path, *names: str, days: int = 2) -> Certificates:
    """Make them. Without names the certificate has only a number in its subject, as Memorystore's has."""
    folder.mkdir()
    now = dt.datetime.now(dt.UTC)

    def made(subject: str, issuer: str, key: Any, by: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        name, from_ = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (subject, issuer))
        builder = x509.CertificateBuilder(from_, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(9)).not_valid_after(now + dt.timedelta(days))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(by, hashes.SHA256())

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issued = (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name)) for name in names]),)
    pems = {
        "ca": made("CA", "CA", authority, authority, x509.BasicConstraints(ca=True, path_length=None)),
        "certificate": made("10.9.9.9", "CA", server, authority, *(issued if names else ())),
    }
    for name, pem in pems.items():
        (folder / name).write_bytes(pem.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return Certificates(folder / "ca", folder / "certificate", folder / "key")


@contextlib.contextmanager
def terminated(port: int, shown: Certificates) -> Iterator[int]:
    """Stand before a Redis and speak TLS: for a redis-server that was built without it. Yield the port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(shown.certificate, shown.key)

    def serve(client: socket.socket) -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as server,
            tls.wrap_socket(client, server_side=True) as inner,
        ):
            while asked := inner.recv(1 << 20):
                server.sendall(asked)
                inner.sendall(server.recv(1 << 20))  # a client of ours asks one thing at a time

    with trickling(serve) as own:
        yield own


@dataclass(frozen=True)
class Guarded:
    """A Redis over TLS, with a user of the least ACL and no other."""

    port: int
    operator: redis.Redis

    @property
    def store(self) -> str:
        return f"rediss://countersign@127.0.0.1:{self.port}/0"


def acl() -> list[str]:
    """Return the rules of the user that docs/stores.md shows."""
    (line,) = re.findall(r"^ACL SETUSER countersign (.*)$", DOCS.read_text("utf-8"), re.MULTILINE)
    return str(line).split()


@contextlib.contextmanager
def guarded(folder: Path, how: str, shown: Certificates) -> Iterator[Guarded]:
    options = {}
    if how == "its own":
        options = {
            "tls-port": str(free_port()), "tls-cert-file": str(shown.certificate), "tls-key-file": str(shown.key),
            "tls-ca-cert-file": str(shown.ca), "tls-auth-clients": "no",
        }  # fmt: skip
        said = subprocess.run([program(), "-", "--port", "0"], input=b"tls-port 1", capture_output=True, check=False)
        if b"No tls-cert-file" not in said.stdout:
            pytest.skip("This redis-server was built without TLS. Install one with it, such as your system's package.")
    (folder / "data").mkdir()
    with running(RedisServer(folder / "data", options=options)) as server, contextlib.ExitStack() as before:
        operator = before.enter_context(redis.Redis(port=server.port))
        rules = [rule.replace("PASSWORD", PASSWORD) for rule in acl()]
        operator.execute_command("ACL", "SETUSER", "countersign", *rules)
        operator.execute_command("ACL", "SETUSER", "default", "resetpass", ">of-the-operator")
        port = int(options.get("tls-port", 0))
        if not port:
            port = before.enter_context(terminated(server.port, shown))
        yield Guarded(port, operator)


@pytest.fixture(params=["its own", "a terminator's"])
def how(request: pytest.FixtureRequest) -> str:
    """Whose TLS it is."""
    kind: str = request.param
    return kind


def settings(folder: Path, store: str, ca: Path | None = None, password: str | None = PASSWORD) -> dict[str, str]:
    (folder / "policy.yaml").write_text(policy("http://127.0.0.1:9"))
    found = {"POLICY": str(folder / "policy.yaml"), "STORE": store}
    if password is not None:
        (folder / "password").write_text(password)
        found["STORE_PASSWORD"] = f"file:{folder / 'password'}"
    return found | ({"STORE_CA": f"file:{ca}"} if ca is not None else {})


# ---------------------------------------------------------------- TLS, a password, a user


def test_everything_goes_over_tls_with_a_ca_of_its_own_and_the_least_acl(tmp_path: Path, how: str) -> None:
    shown = certificates(tmp_path / "tls")
    with guarded(tmp_path, how, shown) as server:
        environ = settings(tmp_path, server.store, shown.ca)
        store, ledger = load(environ).store, ledger_of(environ)
        grant = granted(idempotency_key="k")
        assert store.peek(grant, grant.entitlement.connection.place).replay is None
        assert store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
        assert admit(store, grant).replay == ANSWER
        other = granted(idempotency_key="other")
        store.release(other, admit(store, other))
        store.settle(other, admit(store, other), Reply(Outcome.UNKNOWN), ANSWER)
        assert {held.key for held in ledger.held()} == {grant.ledger_key, other.ledger_key}
        assert other.ledger_key is not None
        ledger.resolve(other.ledger_key, ANSWER)
        ledger.reopen(other.ledger_key)
        assert store.state_of(other.ledger_key)
        assert store.left(grant.caller, [grant.entitlement.connection])
        names = [client["name"] for client in server.operator.client_list() if client["user"] == "countersign"]
        assert set(names) == {"countersign"}


def commands(text: str) -> set[str]:
    return set(re.findall(r"redis\.call\('(\w+)'", text))


def test_look_at_the_start_tries_every_command_that_a_script_uses() -> None:
    assert commands(_LOOK) == commands(_ADMIT) | commands(_SETTLE) | commands(_ADVANCE) | commands(_REPLACE)


@pytest.mark.parametrize("rule", [f"-{name.lower()}" for name in sorted(commands(_LOOK))] + ["-eval", "resetkeys"])
def test_user_that_may_do_too_little_stops_the_start(redis_server: RedisServer, tmp_path: Path, rule: str) -> None:
    with redis.Redis(port=redis_server.port) as operator:
        operator.execute_command("ACL", "SETUSER", "countersign", *acl()[:-1], f">{PASSWORD}", rule)
    with pytest.raises(SettingError, match=r"ACL that docs/stores\.md shows"):
        load(settings(tmp_path, redis_server.url.replace("//", "//countersign@")))


def test_certificate_of_another_ca_stops_the_start_and_refuses_calls(tmp_path: Path, how: str) -> None:
    shown, other = certificates(tmp_path / "tls"), certificates(tmp_path / "other")
    with guarded(tmp_path, how, shown) as server:
        for ca in (None, other.ca):
            with pytest.raises(SettingError) as caught:
                load(settings(tmp_path, server.store, ca))
            assert "certificate is not signed by a CA that is known here" in str(caught.value)
            assert "STORE_CA=" in str(caught.value)
            assert PASSWORD not in str(caught.value)
            store = Redis(server.store, ca=ca.read_text() if ca else None)
            assert refused(store) == "certificate"
        assert "countersign" not in {client["user"] for client in server.operator.client_list()}


def test_certificate_that_has_expired_stops_the_start(tmp_path: Path, how: str) -> None:
    shown = certificates(tmp_path / "tls", days=-1)
    with (
        guarded(tmp_path, how, shown) as server,
        pytest.raises(SettingError, match="has expired"),
    ):
        load(settings(tmp_path, server.store, shown.ca))


def test_without_a_ca_of_its_own_the_name_must_be_right(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = certificates(tmp_path / "tls", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(shown.ca))  # one of the usual CAs
    with guarded(tmp_path, how, shown) as server:
        assert load(settings(tmp_path, server.store)).store
    elsewhere = certificates(tmp_path / "elsewhere", "127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(elsewhere.ca))
    shutil.rmtree(tmp_path / "data")
    with guarded(tmp_path, how, elsewhere) as server, pytest.raises(SettingError, match="for another name"):
        load(settings(tmp_path, server.store))


@pytest.mark.parametrize("password", [None, "wrong-password"])
def test_password_that_is_missing_or_wrong_stops_the_start(tmp_path: Path, how: str, password: str | None) -> None:
    shown = certificates(tmp_path / "tls")
    with guarded(tmp_path, how, shown) as server, pytest.raises(SettingError, match="asks for a password") as caught:
        load(settings(tmp_path, server.store.replace("countersign@", "" if password is None else "countersign@"),
                      shown.ca, password))  # fmt: skip
    assert "wrong" not in str(caught.value)


def test_tls_where_there_is_none_is_a_refusal_and_stops_the_start_if_that_is_said(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(connecting.Client, "STEP", connecting.STEP_SECONDS)
        assert refused(Redis(redis_server.url.replace("redis:", "valkeys:"))) == "no answer to TLS"

    def serve(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(b"-ERR Protocol error: unbalanced quotes in request\r\n")

    with trickling(serve) as port, pytest.raises(SettingError, match="does not take TLS there"):
        load(settings(tmp_path, f"rediss://127.0.0.1:{port}", password=None))


def test_no_tls_where_there_is_some_is_a_refusal(tmp_path: Path, how: str) -> None:
    shown = certificates(tmp_path / "tls")
    with guarded(tmp_path, how, shown) as server:
        assert refused(Redis(server.store.replace("rediss:", "redis:"))) in {"connection lost", "not Redis"}


def test_database_that_is_not_there_stops_the_start(tmp_path: Path, redis_server: RedisServer) -> None:
    with pytest.raises(SettingError, match="no such database"):
        load(settings(tmp_path, redis_server.url.replace("/0", "/999"), password=None))


def test_look_leaves_nothing_behind(tmp_path: Path, redis_server: RedisServer) -> None:
    assert Redis(redis_server.url).flaw() is None
    with redis.Redis(port=redis_server.port) as operator:
        assert operator.keys() == []
        deadline = time.monotonic() + 30
        while "countersign" in [client["name"] for client in operator.client_list()]:
            assert time.monotonic() < deadline


# ---------------------------------------------------------------- Memorystore, as docs/stores.md has it


#: Answers as gcloud does, of one instance of Memorystore; a secret that it is to keep becomes a file.
GCLOUD = """#!/bin/sh
case "$*" in
  "services enable "*redis.googleapis.com*) ;;
  *"connectors create countersign "*--network=default*) ;;
  *"redis instances create countersign "*--network=default*) echo "$@" >"$HELD/created" ;;
  *get-auth-string*"value(authString)"*) printf '%s\\n' "$AUTH" ;;
  *"describe countersign"*"value(serverCaCerts[0].cert)"*) cat "$CA" ;;
  *"describe countersign"*"value(host)"*) echo 127.0.0.1 ;;
  *"describe countersign"*"value(port)"*) echo "$SERVED" ;;
  *"secrets create "*--data-file=-*) cat >"$HELD/$3" ;;
  *) echo "unknown: $*" >&2; exit 1 ;;
esac
"""


def test_steps_for_memorystore_run_as_written(tmp_path: Path, how: str, secret_manager: SecretManager) -> None:
    page = DOCS.read_text("utf-8").partition("\n## Memorystore\n")[2].partition("\n## ")[0]
    *before, last = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(before) == 4
    shown = certificates(tmp_path / "tls")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    (held := tmp_path / "held").mkdir()
    with guarded(tmp_path, how, shown) as server:
        server.operator.config_set("requirepass", PASSWORD)  # of the one user that Memorystore has
        environ = os.environ | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PROJECT": "acme-prod", "REGION": "europe-west3",
            "HELD": str(held), "AUTH": PASSWORD, "CA": str(shown.ca), "SERVED": str(server.port),
            "SECRET_MANAGER_ENDPOINT": secret_manager.address,
        }  # fmt: skip
        found = ran("".join(before) + "echo STORE=$STORE\n", environ)
        assert found.stdout == f"STORE=rediss://127.0.0.1:{server.port}/0\n"
        assert "maxmemory-policy=noeviction" in (held / "created").read_text()
        for name in ("redis-password", "redis-ca"):
            secret_manager.add(f"projects/acme-prod/secrets/{name}", (held / name).read_bytes())
        grant = granted(idempotency_key="k")
        store = Redis(found.stdout.strip().removeprefix("STORE=").replace("//", f"//:{quote(PASSWORD, safe='')}@"),
                      ca=shown.ca.read_text())  # fmt: skip
        store.settle(grant, admit(store, grant), Reply(Outcome.UNKNOWN), ANSWER)
        listed = ran(last, environ | {"STORE": found.stdout.strip().removeprefix("STORE=")})
        assert str(grant.ledger_key)[:12] in listed.stdout
        assert PASSWORD not in listed.stdout + listed.stderr + found.stderr


def ran(script: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        ["bash", "-eu", "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run


# ---------------------------------------------------------------- a network that does not answer


def test_two_attempts_fit_into_a_second() -> None:
    assert 2 * connecting.STEP_SECONDS < 1


def test_server_that_never_answers_is_a_refusal(impatience: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("redis", "rediss"):
            said = refused(Redis(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0"))
            assert said == ("timeout" if scheme == "redis" else "no answer to TLS")


@pytest.mark.parametrize("answered", [0, 1], ids=["from the first", "once it is open"])
def test_server_that_trickles_is_a_refusal_long_before_its_answer_is_there(impatience: None, answered: int) -> None:
    """A byte every 20 ms: whoever waits for each of them for a while has an answer after a minute, and it is good."""
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        for _ in range(answered):
            client.recv(1 << 16)
            client.sendall(b"+OK\r\n")
        client.recv(1 << 16)
        for byte in b"$3000\r\n" + b"x" * 3000 + b"\r\n":
            client.sendall(bytes([byte]))
            if over.wait(0.02):
                return

    with trickling(serve) as port:
        store = Redis(f"redis://127.0.0.1:{port}/0")
        assert refused(store) == "timeout"
        with pytest.raises(StoreUnavailable):
            store.state_of("0" * 64)
    over.set()


def test_answer_in_pieces_is_read_as_a_whole(redis_server: RedisServer) -> None:
    def serve(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", redis_server.port)) as server:
            while asked := client.recv(1 << 16):
                server.sendall(asked)
                for byte in server.recv(1 << 16):
                    client.sendall(bytes([byte]))

    with trickling(serve) as port:
        store, grant = Redis(f"redis://127.0.0.1:{port}/0"), granted(idempotency_key="k")
        assert store.settle(grant, admit(store, grant), SUCCEEDED, ANSWER)
        assert admit(store, grant).replay == ANSWER


def test_many_calls_wait_for_one_lookup_of_a_name_that_nobody_answers(
    impatience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked, real = threading.Event(), list[str](), socket.getaddrinfo

    def slow(host: str, *arguments: Any, **options: Any) -> Any:
        if options.get("flags"):
            return real(host, *arguments, **options)
        asked.append(host)
        assert answer.wait(60)
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    store = Redis(f"redis://redis.example:{free_port()}/0")
    assert at_once(20, lambda _: refused(store)) == ["timeout"] * 20
    assert asked == ["redis.example"]
    answer.set()


def test_name_that_nobody_can_look_up_now_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(kind, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    store = Redis("redis://redis.example/0")
    kind = socket.EAI_AGAIN
    assert (store.flaw(), refused(store)) == (None, "timeout")
    kind = socket.EAI_NONAME
    assert "no such host" in str(store.flaw())


def test_what_is_not_redis_is_a_refusal() -> None:
    def serve(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with trickling(serve) as port:
        assert refused(Redis(f"redis://127.0.0.1:{port}/0")) == "not Redis"


# ---------------------------------------------------------------- a cluster


class Cluster:
    """Three nodes without replicas, a third of the slots each."""

    def __init__(self, servers: list[RedisServer], nodes: list[Any]) -> None:
        self.servers, self.nodes = servers, nodes
        self._ids = [str(node.execute_command("CLUSTER MYID"), "ascii") for node in nodes]
        for number, node in enumerate(nodes):
            last = (5460, 10921, 16383)[number]
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", number * 5461, last)
            if number:
                first = servers[0]
                node.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, first.options["cluster-port"])
        self.settle()

    def settle(self) -> None:
        """Wait until every node knows all of them, and whose the slots are."""
        deadline = time.monotonic() + 60
        while not all(self._knows_all(node) for node in self.nodes):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @staticmethod
    def _knows_all(node: Any) -> bool:
        said = str(node.execute_command("CLUSTER", "INFO"))
        return "cluster_state:ok" in said and "cluster_known_nodes:3" in said and "slots_ok:16384" in said

    @property
    def slot(self) -> int:
        return key_slot(PREFIX.encode())

    @property
    def owner(self) -> int:
        return min(self.slot // 5461, 2)

    def move(self, source: int, target: int) -> None:
        """Move our slot, with what is in it."""
        self.nodes[target].execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self._ids[source])
        self.nodes[source].execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self._ids[target])
        keys = self.nodes[source].keys(f"{PREFIX}*")
        port = self.servers[target].port
        self.nodes[source].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
        for number in (target, source, 3 - target - source):
            self.nodes[number].execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self._ids[target])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with contextlib.ExitStack() as opened:
        servers = []
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            options = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "30000"}
            servers.append(opened.enter_context(running(RedisServer(tmp_path / str(number), options=options))))
        yield Cluster(servers, [opened.enter_context(redis.Redis(port=server.port)) for server in servers])


def test_any_node_of_a_cluster_leads_to_the_one_that_has_our_keys(cluster: Cluster) -> None:
    stores = [Redis(server.url) for server in cluster.servers]
    for number, store in enumerate(stores):
        assert store.flaw() is None
        assert store._client._node.place == ("127.0.0.1", cluster.servers[cluster.owner].port), number
    grant = granted(idempotency_key="k")
    assert stores[0].settle(grant, admit(stores[0], grant), SUCCEEDED, ANSWER)
    for store in stores:
        assert admit(store, grant).replay == ANSWER
        assert store.left(grant.caller, [grant.entitlement.connection])
        assert [held.key for held in store.held()] == [grant.ledger_key]


def test_keys_that_move_to_another_node_are_found_there_and_no_call_is_refused_or_made_twice(cluster: Cluster) -> None:
    seed = cluster.servers[(cluster.owner + 1) % 3]
    store, grant = Redis(seed.url), granted(idempotency_key="k")
    first = admit(store, grant)
    source, target = cluster.owner, (cluster.owner + 2) % 3
    cluster.move(source, target)
    assert store.settle(grant, first, SUCCEEDED, ANSWER)
    assert admit(store, grant).replay == ANSWER
    plain = granted()
    before, after = admit(store, plain), admit(store, plain)
    assert before.standings[0].remaining - after.standings[0].remaining == 1  # without a key it is counted once, too
    cluster.move(target, source)
    assert before.standings[0].remaining - admit(store, plain).standings[0].remaining == 2


def test_node_that_is_gone_is_left_and_the_address_asked_again(cluster: Cluster) -> None:
    owner, seed = cluster.servers[cluster.owner], cluster.servers[(cluster.owner + 1) % 3]
    store = Redis(seed.url)
    admit(store, granted())
    owner.kill()
    for _ in range(2):
        assert refused(store) in {"connection lost", "not this node, nobody listens"}
    owner.start()
    cluster.nodes[cluster.owner].close()
    cluster.settle()
    assert admit(store, granted())


def test_cluster_that_is_not_whole_is_a_refusal(tmp_path: Path) -> None:
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with running(RedisServer(tmp_path, options=options)) as server:
        assert Redis(server.url).flaw() is None  # it may be whole in a moment
        assert refused(Redis(server.url)) == "cluster down"


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (f"{PASSWORD} is no password", "an error"),
        (f"{'X' * 5000} long", "an error"),
        ("NEWCODE that we do not know", "NEWCODE"),
        ("MOVED 1 nowhere", "not this node"),
        ("MOVED 1 host:99999", "not this node"),
    ],
    ids=["hostile", "endless", "new", "moved nowhere", "no port"],
)
def test_error_that_nobody_knows_is_a_refusal_of_which_nothing_but_a_code_is_told(said: str, note: str) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(b"+OK\r\n")
        while client.recv(1 << 16):
            client.sendall(f"-{said}\r\n".encode())

    with trickling(serve) as port:
        assert refused(Redis(f"redis://127.0.0.1:{port}/0")) == note


def test_node_that_sends_us_round_in_circles_is_a_refusal(redis_server: RedisServer) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(b"+OK\r\n")
        while client.recv(1 << 16):
            client.sendall(f"-MOVED 1 :{port}\r\n".encode())

    with trickling(serve) as port:
        store = Redis(f"redis://127.0.0.1:{port}/0")
        assert refused(store) == "not this node"
        assert "CLUSTER SHARDS" in str(store.flaw())
