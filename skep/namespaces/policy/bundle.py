"""A bundle: a directory of Cedar policies, their schema and their tests, as one hashed and signed document.

    *.cedar               policies; each has an @id of its own
    *.cedarschema         one file: what principals, actions, resources and contexts have
    tests.json            [{"name": …, "request": {…}, "decision": "DENY", "rule": "<id>"}, …]

Annotations say what a policy decides. ``forbid`` is DENY, ``permit`` ALLOW, or what ``@decision`` of it says:
REQUIRE_APPROVAL, THROTTLE with ``@retry_ms("1000")``, ALLOW_WITH_CONSTRAINTS with
``@constraints("priority<=5 timeout<=10m")``. ``@about`` is for readers.

The hash is over the canonical JSON of the files, the signature (Ed25519) over the bundle's name and the hash:
who signed it for one name did not sign it for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import cedarpy
import msgspec
from cedarpy import pst

from skep.namespaces.packed import PackError, pack
from skep.namespaces.packed import unpack as unpack_text
from skep.namespaces.policy.constraint import Constraint, parse_constraints
from skep.namespaces.policy.request import Stated
from skep.trace.entry import canonical

POLICIES_MAX: Final = 1024
DECISIONS: Final = (
    "DENY",
    "REQUIRE_APPROVAL",
    "THROTTLE",
    "ALLOW_WITH_CONSTRAINTS",
    "ALLOW",
)  # strictest first
RETRY_MS: Final = 1000  # of a THROTTLE that does not say.
RETRY_MS_MAX: Final = 3_600_000
TESTS: Final = "tests.json"

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\.cedar|[A-Za-z0-9_-]+\.cedarschema|tests\.json")
_ANNOTATIONS: Final = frozenset({"id", "decision", "retry_ms", "constraints", "about"})
_TOKEN: Final = re.compile(r'//[^\n]*|"(?:[^"\\]|\\.)*"|\s+|;|[^\s;"/]+|.', re.DOTALL)


class BundleError(Exception):
    """The bundle is not good: ``file:line: why``."""


class Test(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is expected of a request. ``rule``: the @id that must decide; "": whichever."""

    request: Stated
    decision: str
    rule: str = ""
    name: str = ""


class Rule(NamedTuple):
    """One policy. ``line`` is that of its first word in ``file``."""

    id: str
    file: str
    line: int
    text: str
    decision: str
    retry_ms: int
    constraints: tuple[Constraint, ...]
    tree: pst.Template


class Bundle(msgspec.Struct, frozen=True):
    """The files by name, none of which has been looked into."""

    files: dict[str, str]

    @property
    def text(self) -> bytes:
        return canonical(self.files)

    @property
    def sha256(self) -> str:
        return sha256(self.text).hexdigest()

    @property
    def schema_file(self) -> str:
        found = [name for name in self.files if name.endswith(".cedarschema")]
        if len(found) != 1:
            raise BundleError(f"{len(found)} files end in .cedarschema, one was expected")
        return found[0]

    def pack(self) -> str:
        """As a ledger line holds it. Raises BundleError when it is too large."""
        try:
            return pack(self.text)
        except PackError as error:
            raise BundleError(str(error)) from error


def unpack(packed: str) -> Bundle:
    """The bundle that was packed. Raises BundleError."""
    try:
        return Bundle(msgspec.json.decode(unpack_text(packed), type=dict[str, str]))
    # ValueError: msgspec's and UTF-8's.
    except (ValueError, PackError) as error:
        raise BundleError(f"content: {error}") from error


def read(directory: Path) -> Bundle:
    """The bundle in a directory. Raises BundleError, OSError."""
    return _bundle({path.name: path.read_bytes() for path in sorted(directory.iterdir())})


def shipped() -> Bundle:
    """The bundle ``default`` of this release."""
    folder = resources.files("skep.namespaces.policy").joinpath("default")
    return _bundle({file.name: file.read_bytes() for file in folder.iterdir()})


def _bundle(files: Mapping[str, bytes]) -> Bundle:
    for name in files:
        check_file(name)
    try:
        return Bundle({name: data.decode() for name, data in files.items()})
    except UnicodeDecodeError as error:
        raise BundleError(f"byte {error.start} is not UTF-8") from error


def check_file(name: str) -> None:
    """Raises BundleError for a name that no file of a bundle has."""
    if _FILE.fullmatch(name) is None:
        raise BundleError(f"{name}: expected *.cedar, one *.cedarschema or {TESTS}")


def signed(bundle: str, sha256: str) -> bytes:
    """What a signature of a bundle is over."""
    return f"skep policy bundle\n{bundle}\n{sha256}\n".encode()


# looking into it


def rules_of(bundle: Bundle) -> tuple[Rule, ...]:
    """The policies, file by file. Raises BundleError that names file and line."""
    rules = [
        _rule(name, line, text)
        for name, content in sorted(bundle.files.items())
        if name.endswith(".cedar")
        for line, text in statements(name, content)
    ]
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.id in seen:
            first = seen[rule.id]
            raise BundleError(
                f'{rule.file}:{rule.line}: @id("{rule.id}") is at {first.file}:{first.line} too'
            )
        seen[rule.id] = rule
    if len(rules) > POLICIES_MAX:
        raise BundleError(f"{len(rules)} policies, at most {POLICIES_MAX} were expected")
    return tuple(rules)


def statements(file: str, content: str) -> Iterator[tuple[int, str]]:
    """Each policy's first line and its text. Raises BundleError for what follows the last ``;``."""
    words: list[str] = []
    begun = line = 1
    for token in _TOKEN.findall(content):
        blank = token.startswith("//") or token.isspace()
        if not words and not blank:
            begun = line
        line += token.count("\n")
        if words or not blank:
            words.append(token)
        if token == ";":
            yield begun, "".join(words)
            words = []
    if words:
        raise BundleError(f"{file}:{begun}: a policy does not end: expected ;")


def _rule(file: str, line: int, text: str) -> Rule:
    where = f"{file}:{line}"
    try:
        found = cedarpy.PolicySet.from_str(text).to_pst()
    except ValueError as error:
        raise BundleError(f"{where}: {error}") from error
    if found.templates:
        raise BundleError(f"{where}: ?principal and ?resource: templates are not linked here")
    if len(found.static_policies) != 1:
        raise BundleError(f"{where}: expected one policy")
    (tree,) = found.static_policies.values()
    notes = tree.annotations
    for name in notes:
        if name not in _ANNOTATIONS:
            raise BundleError(f"{where}: @{name}: expected one of @{' @'.join(sorted(_ANNOTATIONS))}")
    if _ID.fullmatch(notes.get("id", "")) is None:
        raise BundleError(f'{where}: expected @id("a-name-of-its-own"), {_ID.pattern}')
    return Rule(notes["id"], file, line, text, *_decision(where, tree), tree)


def _decision(where: str, tree: pst.Template) -> tuple[str, int, tuple[Constraint, ...]]:
    """What the policy decides, as its annotations say."""
    notes = tree.annotations
    said = notes.get("decision", "DENY" if tree.effect == "forbid" else "ALLOW")
    if said not in DECISIONS or (said == "DENY") != (tree.effect == "forbid"):
        raise BundleError(f'{where}: @decision("{said}") of a {tree.effect}: expected {_legal(tree.effect)}')
    retry = notes.get("retry_ms", str(RETRY_MS))
    if not (retry.isascii() and retry.isdigit() and 0 < int(retry) <= RETRY_MS_MAX):
        raise BundleError(f'{where}: @retry_ms("{retry}"): expected 1 to {RETRY_MS_MAX}')
    for note, decision in (("retry_ms", "THROTTLE"), ("constraints", "ALLOW_WITH_CONSTRAINTS")):
        if note in notes and said != decision:
            raise BundleError(f'{where}: @{note} belongs to @decision("{decision}")')
    if said != "ALLOW_WITH_CONSTRAINTS":
        return said, int(retry) if said == "THROTTLE" else 0, ()
    try:
        return said, 0, parse_constraints(notes.get("constraints", ""))
    except ValueError as error:
        raise BundleError(f"{where}: {error}") from error


def _legal(effect: str) -> str:
    return "DENY" if effect == "forbid" else " ".join(DECISIONS[1:])


def check(bundle: Bundle, hive_schema: cedarpy.Schema) -> tuple[Rule, ...]:
    """The policies, when each parses and is valid, strictly, by the bundle's schema and by the hive's.

    Raises BundleError that names file and line. Its tests have not been run."""
    for name in bundle.files:
        check_file(name)
    file = bundle.schema_file
    try:
        own = cedarpy.Schema.from_str(bundle.files[file])
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error
    rules = rules_of(bundle)
    for of, schema in ((file, own), ("the hive's schema", hive_schema)):
        for rule in rules:
            found = cedarpy.validate_policies(rule.text, schema)
            if not found:
                why = found.errors[0].error.removeprefix("for policy `policy0`, ")
                raise BundleError(f"{rule.file}:{rule.line}: {rule.id}: {why} (by {of})")
    return rules


def tests_of(bundle: Bundle) -> tuple[Test, ...]:
    """Its tests. Raises BundleError."""
    try:
        tests = msgspec.json.decode(bundle.files.get(TESTS, "[]"), type=tuple[Test, ...])
    except msgspec.DecodeError as error:
        raise BundleError(f"{TESTS}: {error}") from error
    for i, test in enumerate(tests):
        if test.decision not in DECISIONS:
            raise BundleError(
                f"{TESTS}: test {i + 1}: decision {test.decision!r}: expected {' '.join(DECISIONS)}"
            )
    return tests
