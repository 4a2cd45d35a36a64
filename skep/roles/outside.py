"""What lies outside a role's namespace: where its manifest lets it change nothing. For assertions."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from skep.fs.chan import Right, View
from skep.roles.manifest import load
from skep.roles.sealed import ManifestError
from skep.validator.assertions.facts import Names, Outside

_CHANGE: Final = Right.WRITE | Right.CREATE | Right.REMOVE
# A line that the ledger has at a path may have been written at another place, or by reading it alone.
_WAYS: Final = (
    ("/pools/*/next", "{}", Right.READ),
    ("/jobs/ctl", "/jobs/clone", Right.READ),
    ("/jobs/ctl", "/validator/ctl", _CHANGE),
    ("/jobs/ctl", "/boot/ctl", _CHANGE),
    ("/trust/tokens/clone", "{}", Right.READ),
    ("/ctl", "/sessions/x/ctl", _CHANGE),
    ("/dlq/ctl", "/jobs/ctl", _CHANGE),
    ("/config/ctl", "/config/x", _CHANGE),
    ("/artifacts/ctl", "/artifacts/x", _CHANGE),
    ("/artifacts/ctl", "/boot/ctl", _CHANGE),
)


def outside_of() -> Outside:
    """Whether a path lies outside, by the manifests as they are here; to a role without one all does."""
    views: dict[tuple[str, int], tuple[View | None, Names]] = {}

    def view(role: str, names: Names) -> View | None:
        key = role, id(names)
        if key not in views:
            # The names are kept too, so that no others have their id.
            views[key] = _view(role, names), names
        return views[key][0]

    def outside(role: str, path: str, names: Names) -> bool:
        seen = view(role, names)
        if _rights(seen, path) & _CHANGE:
            return False
        return not any(
            fnmatchcase(path, pattern) and _rights(seen, way.format(path)) & needed
            for pattern, way, needed in _WAYS
        )

    return outside


def _view(role: str, names: Names) -> View | None:
    try:
        return load(role).view(names)
    except ManifestError:
        return None


def _rights(view: View | None, path: str) -> Right:
    for name in filter(None, path.split("/")):
        view = None if view is None else view.child(name)
    return Right(0) if view is None else view.rights
