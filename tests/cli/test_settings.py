"""What a queen is told: by whom, in which order, and that a configuration is signed."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from skep.cli.exits import Failed
from skep.cli.settings import origin_of, setting
from tests.daemons import queen, run


@click.command()
@click.option("--config", is_eager=True, type=click.Path(path_type=Path))
@click.option("--dir", "directory", is_eager=True, type=click.Path(path_type=Path))
@setting("--name", default="")
@setting("--count-max", type=click.IntRange(1), default=3)
@setting("--pool", "pools", multiple=True)
@click.pass_context
def told(
    ctx: click.Context, config: Path | None, directory: Path, name: str, count_max: int, pools: tuple[str]
) -> None:
    for key, value in (("name", name), ("count-max", count_max), ("pool", ",".join(pools))):
        click.echo(f"{key}={value} {origin_of(ctx, key)}")


def tell(directory: Path, *args: str, file: str | None = None, **env: str) -> list[str]:
    """What the command was told, a line each; raises what it raises."""
    if file is not None:
        (directory / "serve.toml").write_text(file)
    said = CliRunner().invoke(told, ["--dir", str(directory), *args], env=env, catch_exceptions=False)
    if said.exit_code:
        raise click.UsageError(said.output)
    return said.output.splitlines()


def test_the_environment_comes_before_the_file_and_that_before_the_option(tmp_path: Path) -> None:
    file = 'name = "by-file"\ncount-max = 5\npool = ["a", "b=c"]\n'
    assert ["name= default", "count-max=3 default", "pool= default"] == tell(tmp_path)
    assert ["name=x --name", "count-max=3 default", "pool=y,z --pool"] == tell(
        tmp_path, "--name", "x", "--pool", "y", "--pool", "z"
    )
    assert ["name=by-file serve.toml", "count-max=5 serve.toml", "pool=a,b=c serve.toml"] == tell(
        tmp_path, "--name", "x", "--pool", "y", file=file
    )
    assert ["name=by-env SKEP_NAME", "count-max=7 SKEP_COUNT_MAX", "pool=d,e SKEP_POOL"] == tell(
        tmp_path, "--name", "x", SKEP_NAME="by-env", SKEP_COUNT_MAX="7", SKEP_POOL="d e"
    )


def test_a_file_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('name = "other"\n')
    assert "name=other other.toml" == tell(tmp_path, "--config", str(other), file='name = "x"')[0]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("name = \n", "Invalid value"),
        ("nmae = 'x'\n", "nmae: unknown setting, expected one of count-max name pool"),
        ("name = true\n", "name: expected text, a whole number, or a list of texts"),
        ("pool = 'a'\n", "pool: expected a list of texts"),
        ("name = ['a']\n", "name: expected one value"),
        ("[name]\n", "name: expected text"),
        (f"name = '{'x' * 70_000}'\n", "more than 65536 bytes"),
        ("count-max = 0\n", "serve.toml, count-max: 0 is not in the range"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_its_place(tmp_path: Path, file: str, why: str) -> None:
    with pytest.raises((Failed, click.UsageError)) as caught:
        tell(tmp_path, file=file)
    assert why in str(caught.value)
    assert "serve.toml" in str(caught.value)


@pytest.mark.slow
def test_a_hive_tells_what_it_was_told_and_how_it_began(tmp_path: Path) -> None:
    tmp_path.joinpath("serve.toml").write_text('name = "nest"\npool = ["default=sum"]\n')
    hashes = []
    for _ in range(2):
        with queen(tmp_path, "--name", "other") as hive:
            config = hive.ask("cat", "/boot/config").splitlines()
            assert {"name nest serve.toml", "pool default=sum serve.toml", "tcp-role observer default"} <= {
                *config
            }
            assert f"dir {tmp_path} --dir" in config
            assert "online" == hive.ask("cat", "/boot/phase")
            hashes.append(hive.ask("cat", "/boot/hash"))
            lines = hive.ask("cat", "/log/boot/starts").splitlines()
    assert 1 == len(set(hashes))
    # Two starts, the second of which has not come to its end yet.
    assert ["preboot", "boot", "online", "shutdown", "preboot", "boot"] == [
        line.partition('"stage":"')[2].partition('"')[0] for line in lines
    ]


def keys(directory: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    directory.mkdir(exist_ok=True)
    (directory / "key.pem").write_bytes(private)
    (directory / "root.pem").write_bytes(public)


@pytest.mark.slow
def test_a_configuration_that_was_tampered_with_begins_no_hive(tmp_path: Path) -> None:
    keys(tmp_path / "ours")
    keys(tmp_path / "theirs")
    # Its manifests are signed by the same key.
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    file = tmp_path / "hive" / "serve.toml"
    file.parent.mkdir(mode=0o700)
    file.write_text('name = "nest"\n')
    env = {"SKEP_MANIFEST_ROOT": str(tmp_path / "ours" / "root.pem"), "SKEP_MANIFESTS": str(manifests)}

    def served() -> str:
        """Why it is not served."""
        done = run("serve", "--dir", str(file.parent), env=env)
        assert 1 == done.returncode
        assert not (file.parent / "ledger.db").exists()
        return done.stderr

    def signed(by: str) -> None:
        done = run("manifest", "sign", "--key", str(tmp_path / by / "key.pem"), str(file))
        assert (0, f"{file}.sig\n") == (done.returncode, done.stdout)

    assert "serve.toml.sig: missing, and SKEP_MANIFEST_ROOT asks for a signature of serve.toml" in served()
    signed("theirs")
    assert "serve.toml.sig: not a signature of serve.toml by the key of SKEP_MANIFEST_ROOT" in served()
    signed("ours")
    assert "queen-primary" in served()  # which has no manifest there: the configuration is good
    file.write_text('name = "mest"\n')
    assert "serve.toml.sig: not a signature of serve.toml by the key of SKEP_MANIFEST_ROOT" in served()
