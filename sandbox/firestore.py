"""Google's Firestore emulator on this machine, for tests: can be started, killed and started again.

It is a component of gcloud that must be installed, runs on Java, and keeps everything in memory.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from sandbox.ports import free_port

#: Java starts slowly on a machine that is busy with tests.
START_SECONDS = 60

_MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"


@dataclass
class FirestoreEmulator:
    """One emulator; projects and databases are created when they are named, so each test may have its own."""

    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The value for ``FIRESTORE_EMULATOR_HOST``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it has answered a call. Raises FileNotFoundError if it or its Java is missing."""
        options = ["--host=127.0.0.1", f"--port={self.port}", "--database-mode=firestore-native"]
        command = [java(), "-Xmx512m", "-XX:TieredStopAtLevel=1", "-Duser.language=en", "-cp", str(jar()), _MAIN]
        self.process = subprocess.Popen(
            [*command, "start", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.address}/", timeout=5) as answer:
                if answer.status == HTTPStatus.OK:
                    self._warm_up()
                    return
            time.sleep(0.05)
        self.kill()
        raise TimeoutError("the Firestore emulator did not start")

    def _warm_up(self) -> None:
        """Write and read once: Java's first calls take up to a second."""
        import grpc  # noqa: PLC0415 - only needed where there is an emulator
        from google.cloud.firestore_v1.services.firestore import FirestoreClient  # noqa: PLC0415
        from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport  # noqa: PLC0415

        with FirestoreClient(transport=FirestoreGrpcTransport(channel=grpc.insecure_channel(self.address))) as client:
            database = "projects/warm-up/databases/(default)"
            name, told = f"{database}/documents/warm/up", (("authorization", "Bearer owner"),)
            client.commit({"database": database, "writes": [{"update": {"name": name}}]}, metadata=told)
            list(client.batch_get_documents({"database": database, "documents": [name]}, metadata=told))

    def kill(self) -> None:
        """End it as a crash does. Its data is lost, as after an orderly end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=60)
            self.process = None

    stop = kill


def java() -> str:
    """Return the Java that the emulator runs on."""
    found = shutil.which("java")
    if found is None:
        raise FileNotFoundError("The Firestore emulator needs Java, and there is none on the path. Install a Java 21.")
    return found


def jar() -> Path:
    """Return the emulator's program, in gcloud's folder."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise FileNotFoundError(
            "The Firestore emulator comes with gcloud, which is not installed. Install it from cloud.google.com/sdk, "
            "then run: gcloud components install cloud-firestore-emulator"
        )
    beside = Path(gcloud).resolve().parents[1] / _JAR
    if beside.is_file():
        return beside
    asked = subprocess.run(
        [gcloud, "info", "--format=value(installation.sdk_root)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = Path(asked.stdout.strip()) / _JAR
    if not found.is_file():
        raise FileNotFoundError(
            "The Firestore emulator is not installed. Run: gcloud components install cloud-firestore-emulator (if "
            "gcloud came from a package manager: its package google-cloud-cli-firestore-emulator)."
        )
    return found
