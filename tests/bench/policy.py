"""Decisions a second: 50 policies, cold (Cedar asked each time) and remembered; and what parsing costs.

python -m tests.bench.policy
"""

import time
from collections.abc import Callable

from skep.namespaces.policy.bundle import Bundle, shipped
from skep.namespaces.policy.engine import Engine, Live
from skep.namespaces.policy.request import Principal, Stated, written

POLICIES = 50
SECONDS = 1.0

# As an operator writes them: a role, an action or two, a condition on the job.
POLICY = """@id("p{i}") permit (
  principal in Skep::Role::"role{i}",
  action in [Skep::Action::"jobs.submit", Skep::Action::"jobs.cancel"],
  resource
) when {{ context.pool == "pool{i}" && principal.trust != "red" && context.capability like "t{i}.*" }};
"""


def rows() -> list[tuple[str, str, float]]:
    """Name, unit and figure of each row."""
    live = [_live("default", shipped()), _live("operator", _fifty())]
    stated = Stated("jobs.submit", context={"args": {"topic": "t7.x"}, "pool": "pool7", "capability": "t7.x"})
    request = written(stated, Principal("unix:ann", "role7"))
    engine = Engine(live)
    assert engine.decide(request).allowed
    began = time.perf_counter()
    Engine(live).decide(request)
    first_ms = (time.perf_counter() - began) * 1e3
    return [
        ("policy: first decision, bundles parsed", "ms", first_ms),
        (f"policy: {POLICIES} policies, cold", "decisions/s", per_second(lambda: engine.ask(request))),
        (
            f"policy: {POLICIES} policies, remembered",
            "decisions/s",
            per_second(lambda: engine.decide(request)),
        ),
    ]


def main() -> None:
    for name, unit, figure in rows():
        print(f"{name:44}{figure:12,.1f} {unit}")


def _fifty() -> Bundle:
    return Bundle({"fifty.cedar": "".join(POLICY.format(i=i) for i in range(POLICIES))})


def _live(name: str, bundle: Bundle) -> Live:
    return Live(name, 1, bundle.sha256, bundle.pack())


def per_second(what: Callable[[], object]) -> float:
    """How often it can be done in a second."""
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        for _ in range(20):
            what()
        count += 20
    return count / took


if __name__ == "__main__":
    main()
