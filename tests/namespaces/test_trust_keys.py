"""The key store: what others can read is not used, what is there is not overwritten, half a key is none."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pkcs11 import Attribute, ObjectClass

from skep.namespaces.trust.hsm import KEK_LABEL
from skep.namespaces.trust.keys import CURVED, KEK_SIZE, PLAIN, Keys, KeyStoreError, id_of

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "4711-secret"


class Softhsm:
    """A software HSM with its tokens in a directory of the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tokens").mkdir()
        conf = directory / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
        os.environ["SOFTHSM2_CONF"] = str(conf)
        self.made = 0

    def token(self) -> str:
        """A fresh token, as SKEP_KMS names it."""
        self.made += 1
        label = f"hive{self.made}"
        subprocess.run(
            [
                "softhsm2-util",
                "--init-token",
                "--free",
                "--label",
                label,
                "--so-pin",
                "12345678",
                "--pin",
                PIN,
            ],
            check=True,
            capture_output=True,
        )
        pkcs11.lib(MODULE).reinitialize()
        pin = self.directory / f"{label}.pin"
        pin.touch(mode=0o600)
        pin.write_text(f"{PIN}\n")
        return f"pkcs11:{MODULE}?token={label}&pin-file={pin}"


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Softhsm]:
    before = os.environ.get("SOFTHSM2_CONF")
    yield Softhsm(tmp_path_factory.mktemp("softhsm"))
    pkcs11.unload(MODULE)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture(params=["plain", "file", "pkcs11"])
def kms(request: pytest.FixtureRequest, tmp_path: Path, softhsm: Softhsm) -> str:
    return {"plain": lambda: "", "file": lambda: f"file:{tmp_path}/kek", "pkcs11": softhsm.token}[
        request.param
    ]()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def refused(directory: Path, kms: str, then: Callable[[Keys], object] = lambda keys: None) -> str:
    """Why the store is refused, or what is done with it; nothing there has changed."""
    before = contents(directory)
    with pytest.raises(KeyStoreError) as caught:
        used(directory, kms, then)
    assert before == contents(directory)
    assert PIN not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def used(directory: Path, kms: str, then: Callable[[Keys], object]) -> None:
    keys = Keys.open(directory, kms)
    try:
        then(keys)
    finally:
        keys.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


def secrets_of(keys: Keys, ids: dict[str, str]) -> list[bytes]:
    """The raw bytes of the keys that are here at all."""
    found = [keys.plain(what, ids[what]).private_bytes_raw() for what in PLAIN]
    number = keys.curved("queen", ids["queen"]).private_numbers().private_value
    return [*found, number.to_bytes(32)]


# every driver


def test_keys_are_found_again_by_the_next_process(home: Path, kms: str) -> None:
    keys = Keys.open(home, kms)
    ids = {what: keys.make(what) for what in (*CURVED, *PLAIN)}
    assert 5 == len(set(ids.values()))
    keys.close()
    keys = Keys.open(home, kms)
    for what in CURVED:
        key = keys.curved(what, ids[what])
        assert ids[what] == id_of(key)
        key.public_key().verify(key.sign(b"said", ECDSA(SHA256())), b"said", ECDSA(SHA256()))
    for what in PLAIN:
        plain = keys.plain(what, ids[what])
        assert ids[what] == id_of(plain) == plain.public_key().public_bytes_raw().hex()
    keys.close()


def test_the_directory_and_the_files_are_ours_alone_whatever_the_umask(home: Path, kms: str) -> None:
    before = os.umask(0)
    try:
        keys = Keys.open(home, kms)
        for what in (*CURVED, *PLAIN):
            keys.make(what)
    finally:
        os.umask(before)
    assert 0o700 == home.stat().st_mode & 0o777
    assert {0o600} == {path.stat().st_mode & 0o777 for path in home.iterdir()}
    keys.close()


def test_a_key_that_is_forgotten_is_gone(home: Path, kms: str) -> None:
    keys = Keys.open(home, kms)
    for what in ("ca", "token"):
        id = keys.make(what)
        _ = keys.curved(what, id) if what == "ca" else keys.plain(what, id)
        keys.forget(what, id)
        keys.forget(what, id)
        with pytest.raises(KeyStoreError, match=id):
            _ = keys.curved(what, id) if what == "ca" else keys.plain(what, id)
    assert {} == contents(home)
    keys.close()


def test_a_key_is_for_one_use(home: Path, kms: str) -> None:
    keys = Keys.open(home, kms)
    id = keys.make("token")
    (home / f"token-{id}.key").rename(home / f"policy-{id}.key")
    keys.close()
    if kms:
        assert "does not open" in refused(home, kms, lambda keys: keys.plain("policy", id))
    assert "No such file" in refused(home, kms, lambda keys: keys.plain("token", id))


def test_a_key_under_another_name_is_refused(home: Path) -> None:
    keys = Keys.open(home)
    one, other = keys.make("token"), keys.make("token")
    os.replace(home / f"token-{one}.key", home / f"token-{other}.key")
    assert "holds another key than its name says" in refused(
        home, "", lambda keys: keys.plain("token", other)
    )


def test_what_is_damaged_is_refused_wherever_it_is(home: Path, kms: str) -> None:
    keys = Keys.open(home, kms)
    id = keys.make("token")
    keys.close()
    path = home / f"token-{id}.key"
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        refused(home, kms, lambda keys: keys.plain("token", id))
    for at in range(0, len(whole), 5) if kms else ():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(home, kms, lambda keys: keys.plain("token", id))


def test_nothing_tells_a_key(home: Path, kms: str) -> None:
    keys = Keys.open(home, kms)
    ids = {what: keys.make(what) for what in (*CURVED, *PLAIN)}
    secrets = secrets_of(keys, ids)
    said = repr([keys, vars(keys), *(vars(part) for part in (keys._cover,))])
    for secret in secrets:
        assert secret.hex() not in said
        assert repr(secret) not in said
        if kms:
            assert all(secret not in data for data in contents(home).values())
    keys.close()


# what others can do


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o602])
def test_a_key_that_others_can_use_is_used_no_more(home: Path, mode: int) -> None:
    keys = Keys.open(home)
    id = keys.make("token")
    (home / f"token-{id}.key").chmod(mode)
    assert "can be used by others: chmod go= it" in refused(home, "", lambda keys: keys.plain("token", id))


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_that_others_can_use_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    assert f"{home} can be used by others: chmod go= it" == refused(home, "")


def test_a_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    keys = Keys.open(home)
    id = keys.make("token")
    (home / f"token-{id}.key").rename(tmp_path / "elsewhere")
    (home / f"token-{id}.key").symlink_to(tmp_path / "elsewhere")
    refused(home, "", lambda keys: keys.plain("token", id))
    (tmp_path / "link").symlink_to(home)
    assert "is no directory" in refused(tmp_path / "link", "")


def test_what_is_no_file_is_not_waited_for(home: Path) -> None:
    keys = Keys.open(home)
    id = keys.make("token")
    path = home / f"token-{id}.key"
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyStoreError, match="is no file"):
        Keys.open(home).plain("token", id)


# crashes


def dies(home: Path, step: int) -> bool:
    """Make a key in a process that dies at its ``step``-th look at the disk; whether it did."""
    pid = os.fork()
    if pid == 0:
        left = step

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in ("open", "os.link", "os.remove", "os.rename"):
                left -= 1
                if left < 0:
                    os._exit(9)

        keys = Keys.open(home, f"file:{home.parent}/kek")
        sys.addaudithook(hook)
        keys.make("token")
        os._exit(0)
    return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def test_a_crash_at_any_step_leaves_a_whole_key_or_none(home: Path) -> None:
    kms = f"file:{home.parent}/kek"
    Keys.open(home, kms).make("merkle")
    step, kept = 0, 0
    while dies(home, step):
        step += 1
        keys = Keys.open(home, kms)
        assert all(name.endswith(".key") for name in contents(home)), "the rest was swept away"
        kept = len(keys.ids("token"))
        for id in keys.ids("token"):
            keys.plain("token", id)
    assert 4 <= step <= 8
    assert len(Keys.open(home, kms).ids("token")) == kept + 1


def test_a_key_that_was_half_written_is_never_used(home: Path) -> None:
    keys = Keys.open(home)
    id = keys.make("token")
    whole = (home / f"token-{id}.key").read_bytes()
    keys.forget("token", id)
    (home / f".token-{id}.key.0123.new").write_bytes(whole[:50])
    keys = Keys.open(home)
    assert [] == keys.ids("token")
    assert {} == contents(home)


def test_a_full_disk_leaves_nothing(home: Path) -> None:
    """The size limit of a process stands for a disk that is full."""
    code = (
        "import resource, sys; from pathlib import Path; from skep.namespaces.trust.keys import *\n"
        "keys = Keys.open(Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "try: keys.make('token')\n"
        "except KeyStoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert {} == contents(home)


# file:


def test_a_kek_is_made_before_the_first_key_and_never_after(home: Path, tmp_path: Path) -> None:
    kek = tmp_path / "kek"
    keys = Keys.open(home, f"file:{kek}")
    assert (KEK_SIZE, 0o600) == (len(kek.read_bytes()), kek.stat().st_mode & 0o777)
    keys.make("token")
    kek.unlink()
    assert f"{kek}: No such file or directory" == refused(home, f"file:{kek}")
    assert not kek.exists()


def test_another_kek_opens_nothing(home: Path, tmp_path: Path) -> None:
    id = Keys.open(home, f"file:{tmp_path}/kek").make("token")
    Keys.open(tmp_path / "others", f"file:{tmp_path}/other")
    said = refused(home, f"file:{tmp_path}/other", lambda keys: keys.plain("token", id))
    assert f"it was sealed with another key than that in {tmp_path}/other, or is damaged" in said


def test_keys_are_not_taken_for_those_of_another_driver(home: Path, tmp_path: Path, softhsm: Softhsm) -> None:
    places = {"": home, f"file:{tmp_path}/kek": tmp_path / "sealed", softhsm.token(): tmp_path / "hsm"}
    ids = {}
    for kms, directory in places.items():
        keys = Keys.open(directory, kms)
        ids[kms] = keys.make("token")
        keys.close()
    for kms, directory in places.items():
        for other in places.keys() - {kms}:
            said = refused(directory, other, partial(Keys.plain, what="token", id=ids[kms]))
            assert "another SKEP_KMS" in said or "has no" in said


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_kek_has_256_bits(home: Path, tmp_path: Path, size: int) -> None:
    kek = tmp_path / "kek"
    kek.touch(mode=0o600)
    kek.write_bytes(b"k" * size)
    assert f"{kek} is no key: expected 32 random bytes" == refused(home, f"file:{kek}")


def test_a_kek_that_others_can_read_is_refused(home: Path, tmp_path: Path) -> None:
    kek = tmp_path / "kek"
    kek.write_bytes(b"k" * 32)
    kek.chmod(0o644)
    assert f"{kek} can be used by others: chmod go= it" == refused(home, f"file:{kek}")


@pytest.mark.parametrize(
    "kms",
    [
        "vault:x",
        "file:kek",
        "file:",
        "kek",
        f"pkcs11:{MODULE}",
        f"pkcs11:{MODULE}?token=t&pin-value={PIN}",
        f"pkcs11:{MODULE}?token=t&pin-file=/p&pin-value={PIN}",
    ],
)
def test_a_driver_that_is_not_understood_is_refused_without_being_quoted(home: Path, kms: str) -> None:
    assert refused(home, kms).startswith("SKEP_KMS")


# pkcs11:


def test_the_cas_key_never_leaves_the_hsm(home: Path, softhsm: Softhsm) -> None:
    kms = softhsm.token()
    keys = Keys.open(home, kms)
    key = keys.curved("ca", keys.make("ca"))
    assert {} == contents(home)
    with pytest.raises(TypeError, match="stays in the HSM"):
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(TypeError, match="stays in the HSM"):
        key.private_numbers()
    token = pkcs11.lib(MODULE).get_token(token_label=f"hive{softhsm.made}")
    with token.open() as session:
        for kind, label in ((ObjectClass.PRIVATE_KEY, "skep ca"), (ObjectClass.SECRET_KEY, KEK_LABEL)):
            held = session.get_key(object_class=kind, label=label)
            assert (True, False) == (held[Attribute.SENSITIVE], held[Attribute.EXTRACTABLE])
            with pytest.raises(pkcs11.AttributeSensitive):
                _ = held[Attribute.VALUE]


def test_a_wrong_pin_and_a_wrong_token_are_told_without_the_pin(home: Path, softhsm: Softhsm) -> None:
    kms = softhsm.token()
    Keys.open(home, kms).close()
    pin = Path(kms.partition("pin-file=")[2])
    pin.write_text(f"{PIN}9")
    assert refused(home, kms).endswith("the PIN in the pin-file is not its PIN")
    pin.write_text(PIN)
    assert refused(home, kms.replace("token=hive", "token=bee")).endswith("there is no such token")
    assert "cannot open shared object" in refused(home, kms.replace("softhsm2", "softhsm3"))
    pin.chmod(0o644)
    assert f"{pin} can be used by others: chmod go= it" == refused(home, kms)


def test_an_hsm_that_has_lost_its_key_makes_no_new_one(home: Path, softhsm: Softhsm) -> None:
    keys = Keys.open(home, softhsm.token())
    keys.make("token")
    keys.close()
    assert f"has no {KEK_LABEL!r}: the keys in files were covered with it" in refused(home, softhsm.token())
