"""Secure Boot: firmware starts what is signed and nothing else, and its refusal is a result."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skep.__main__ import run
from skep.boot.argv import command
from skep.boot.classes import Class
from skep.boot.manifest import Manifest, ManifestError, parse
from skep.boot.secureboot import FIRMWARE, EfiError, authenticode, enrol, sign
from skep.boot.signing import Seen
from skep.boot.staging import staged

EPOCH = datetime(2019, 1, 1, tzinfo=UTC)  # before the time at which every guest begins
HEAD = 'name = "app"\narch = "x86_64"\nkernel = "app.efi"\n'
READY = '[[milestone]]\nname = "ready"\nline = "EFI: ready"\n'


def certificate(folder: Path, name: str) -> None:
    key = generate_private_key(65537, 2048)
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder(called, called, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(EPOCH).not_valid_after(EPOCH + timedelta(days=9999))
    (folder / f"{name}.pem").write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)


@pytest.fixture(scope="module")
def signed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By architecture: the application, plain, signed by own and by other, and tampered with; and variables
    that have own's certificate."""
    into = tmp_path_factory.mktemp("efi")
    for name in ("own", "other"):
        certificate(into, name)
    for arch in FIRMWARE:
        shutil.copytree(images / arch, into / arch)
        for name in ("own", "other"):
            sign(
                into / arch / "app.efi",
                into / f"{name}.key",
                into / f"{name}.pem",
                into / arch / f"{name}.efi",
            )
        data = bytearray((into / arch / "own.efi").read_bytes())
        data[0x1FF0] ^= 1  # of the section, behind the code
        (into / arch / "tampered.efi").write_bytes(data)
        enrol(arch, into / arch / "vars.fd", [into / "own.pem"], [], [])
    return into


def manifest(signed: Path, arch: str, image: str, variables: str = "vars.fd") -> str:
    path = signed / arch / "boot.toml"
    head = HEAD.replace("x86_64", arch).replace("app.efi", f"{image}.efi")
    more = f'vars = "{variables}"\nforbid = ["SecureBoot=0"]\n'
    path.write_text(f"{head}{more}{READY}")
    return str(path)


REFUSED = Class.SIGNATURE_INVALID.row.status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "image", "status"),
    [
        ("x86_64", "own", 0),
        ("x86_64", "app", REFUSED),
        ("x86_64", "other", REFUSED),
        ("x86_64", "tampered", REFUSED),
        ("aarch64", "own", 0),
        ("aarch64", "app", REFUSED),
    ],
)
def test_firmware_starts_what_its_owner_signed_and_nothing_else(
    signed: Path, arch: str, image: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["boot", "run", manifest(signed, arch, image)]) == status
    out, err = capsys.readouterr()
    assert ("wall ready" in out) == (status == 0)
    assert ("Access Denied" in err) == (status == REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("revoke", [["--revoke", "own.pem"], ["--revoke-image", "x86_64/app.efi"]])
def test_what_was_revoked_does_not_start_however_it_is_signed(signed: Path, revoke: list[str]) -> None:
    option, name = revoke
    variables = str(signed / "x86_64" / "revoked.fd")
    enrolled = ["--cert", str(signed / "own.pem"), option, str(signed / name)]
    assert run(["boot", "efi", "enrol", variables, *enrolled]) == 0
    assert run(["boot", "run", manifest(signed, "x86_64", "own", "revoked.fd")]) == REFUSED


@pytest.mark.slow
def test_without_keys_anything_starts_and_a_forbidden_line_tells(
    signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(FIRMWARE["x86_64"].vars, signed / "x86_64" / "blank.fd")
    path = manifest(signed, "x86_64", "app", "blank.fd")
    assert run(["boot", "run", path]) == Class.KERNEL_PANIC.row.status
    assert "forbidden: EFI: SecureBoot=0" in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_that_faults_is_told_of_by_firmware(
    signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((signed / "x86_64" / "app.efi").read_bytes())
    data[0x1000:0x1002] = b"\x0f\x0b"  # ud2, the first instruction
    (signed / "x86_64" / "faulty.efi").write_bytes(data)
    shutil.copy(FIRMWARE["x86_64"].vars, signed / "x86_64" / "blank.fd")
    path = manifest(signed, "x86_64", "faulty", "blank.fd")
    assert run(["boot", "run", path]) == Class.KERNEL_PANIC.row.status
    assert "X64 Exception Type - 06(#UD - Invalid Opcode)" in capsys.readouterr().err


@pytest.mark.slow
def test_signatures_of_images_are_made_and_checked(signed: Path, tmp_path: Path) -> None:
    key, cert = ["--key", str(signed / "own.key")], ["--cert", str(signed / "own.pem")]
    app, made = str(signed / "x86_64" / "app.efi"), str(tmp_path / "app.signed.efi")
    assert run(["boot", "efi", "sign", app, *key, *cert, "-o", made]) == 0
    assert run(["boot", "efi", "verify", made, *cert]) == 0
    assert run(["boot", "efi", "verify", made, "--cert", str(signed / "other.pem")]) == REFUSED
    assert run(["boot", "efi", "verify", app, *cert]) == REFUSED
    assert run(["boot", "efi", "verify", str(signed / "x86_64" / "tampered.efi"), *cert]) == REFUSED
    assert run(["boot", "efi", "sign", str(signed / "own.pem"), *key, *cert, "-o", made]) == 1


@pytest.mark.slow
def test_an_images_digest_is_the_same_with_and_without_a_signature(signed: Path) -> None:
    images = {name: (signed / "x86_64" / f"{name}.efi").read_bytes() for name in ("app", "own", "tampered")}
    assert authenticode(images["app"]) == authenticode(images["own"]) != authenticode(images["tampered"])


@pytest.mark.parametrize("data", [b"", b"MZ" + b"\0" * 100, b"\xff" * 300])
def test_what_is_no_image_has_no_digest(data: bytes) -> None:
    with pytest.raises(EfiError):
        authenticode(data)


def test_a_program_that_is_missing_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EfiError, match="sbsign is not there: it is in the package sbsigntool"):
        sign(tmp_path, tmp_path, tmp_path, tmp_path)


def efi(text: str = HEAD) -> Manifest:
    return parse(f'{text}vars = "vars.fd"\n{READY}')


def test_with_variables_uefi_boots_it() -> None:
    said = command(efi(), exact=False)
    assert "-kernel" not in said
    assert "q35,smm=on" in said
    assert "if=pflash,unit=0,format=raw,readonly=on,file=.skep/code.fd" in said
    own = command(efi(HEAD + 'firmware = "code.fd"\n'), exact=False)
    assert "if=pflash,unit=0,format=raw,readonly=on,file=code.fd" in own


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('vars = "vars.fd"\ncmdline = "x"\n', "without modules and cmdline"),
        ('firmware = "ovmf"\n', "expected vars"),
        ('vars = ".skep/vars.fd"\n', "the lab's own"),
    ],
)
def test_what_uefi_cannot_have_is_told(text: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        parse(HEAD + text + READY)


def test_the_machines_firmware_is_staged_and_hashed(tmp_path: Path) -> None:
    for name in ("app.efi", "vars.fd"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "boot.toml").write_text(f'{HEAD}vars = "vars.fd"\n{READY}')
    with staged(tmp_path / "boot.toml", [], Seen(tmp_path / "seen"), 0) as found:
        assert sorted(found.hashes) == ["app.efi", "ovmf", "vars.fd"]
        assert (found.base / ".skep/esp/EFI/BOOT/BOOTX64.EFI").read_bytes() == b"app.efi"
        assert (found.base / ".skep/code.fd").read_bytes() == FIRMWARE["x86_64"].code.read_bytes()
