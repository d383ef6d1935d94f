"""The Firestore emulator is found where gcloud is, and where it is not, it is said how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox.firestore import FirestoreEmulator, jar

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path, body: str = "exit 0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that programs are looked for in."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def emulator_in(root: Path) -> Path:
    place = root / "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
    place.parent.mkdir(parents=True)
    place.touch()
    return place


def test_without_java_it_says_so(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs Java"):
        FirestoreEmulator().start()


def test_without_gcloud_it_says_where_to_get_it(path: Path) -> None:
    program(path / "java")
    with pytest.raises(FileNotFoundError, match=r"Install it from cloud\.google\.com/sdk"):
        FirestoreEmulator().start()


def test_without_the_component_it_says_how_to_install_it(path: Path) -> None:
    program(path / "java")
    program(path / "gcloud", "echo /nowhere")
    with pytest.raises(FileNotFoundError, match="gcloud components install cloud-firestore-emulator"):
        FirestoreEmulator().start()


def test_it_lies_beside_the_gcloud_of_the_path_also_behind_a_link(path: Path, tmp_path: Path) -> None:
    program(tmp_path / "sdk/bin/gcloud", "exit 1")
    path.mkdir()
    (path / "gcloud").symlink_to(tmp_path / "sdk/bin/gcloud")
    place = emulator_in(tmp_path / "sdk")
    assert jar() == place


def test_it_lies_where_gcloud_says_that_it_is_installed(path: Path, tmp_path: Path) -> None:
    program(path / "gcloud", f"echo {tmp_path / 'elsewhere'}")
    place = emulator_in(tmp_path / "elsewhere")
    assert jar() == place
