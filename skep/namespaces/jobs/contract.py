"""Which schemas a job's input and its result must be good by, as /config names them for its topic. Pure.

An input in the line is checked when the line is decided. An artifact's bytes are not there then: the door
(checked.py) checks them before, and says in the line by which version and whose bytes; what was good by a
version is good by every later one of its major. The result is checked by what was asked for at submit.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from skep.fs.errors import E
from skep.namespaces.jobs.verbs import CHECKED
from skep.namespaces.order import refusal

CHECKED_MAX: Final = 1 << 20  # bytes of an artifact that is checked: it is read whole, at the door.


class World(Protocol):
    def setting(self, scope: str, key: str) -> object:
        """What /config has for the key in the scope; None: nothing. Raises Refusal when it cannot be read."""

    def schema_version(self, reference: str, at: str) -> str:
        """The version that is referred to, ``thumb@1.2``. Raises Refusal, which begins with ``at``."""

    def checked_by(self, reference: str, text: str, at: str) -> str:
        """The version that the JSON text is good by. Raises Refusal, with the place below ``at``."""


class Contract(NamedTuple):
    """``checked``: the version that the input is good by; ``result``: the schema of the result. "": none."""

    checked: str
    result: str


def contract(world: World, scope: str, topic: str, text: str | None, artifact: str, vouched: str) -> Contract:
    """What holds for a job of the topic, whose input is good by it; raises Refusal.

    ``text``, ``artifact``: the input, as Submitted has it; ``vouched``: what the door says of the latter."""
    request = request_schema(world, scope, topic)
    result = world.setting(scope, f"topics/{topic}/result")
    if request is None:
        if world.setting(scope, "jobs/schema") is True:
            raise refusal(
                E.SCHEMA, f"/topic: {topic} has no schema of its input, and jobs/schema asks for one"
            )
        checked = ""
    elif artifact:
        checked = _vouched(world, request, artifact, vouched)
    elif text is None:
        raise refusal(E.SCHEMA, f"/input: is missing, expected what {request} says")
    else:
        checked = world.checked_by(request, text, "/input")
    if not isinstance(result, str):
        return Contract(checked, "")
    world.schema_version(result, "/topic")
    return Contract(checked, result)


def request_schema(world: World, scope: str, topic: str) -> str | None:
    """The schema of the input; None: there is none. Raises Refusal."""
    found = world.setting(scope, f"topics/{topic}/request")
    return found if isinstance(found, str) else None


def vouching(version: str, artifact: str) -> dict[str, str]:
    """What the door adds to the arguments of a submit."""
    return {CHECKED.name: f"{version} {artifact}"}


def _vouched(world: World, reference: str, artifact: str, said: str) -> str:
    """The version that the artifact is good by."""
    newest = world.schema_version(reference, "/artifact")
    version, _, digest = said.partition(" ")
    if not said:
        raise refusal(E.SCHEMA, f"/artifact: it was not checked by {newest}: expected the input in the line")
    if digest != artifact:
        raise refusal(E.CONFLICT, "the artifact was sealed anew meanwhile")
    if _major(version) != _major(newest) or _minor(version) > _minor(newest):
        raise refusal(E.SCHEMA, f"/artifact: it was checked by {version}, not by {newest}")
    return version


def _major(version: str) -> str:
    """``thumb@1.2`` -> ``thumb@1``"""
    return version.rpartition(".")[0]


def _minor(version: str) -> int:
    return int(version.rpartition(".")[2])
