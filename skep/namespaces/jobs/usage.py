"""What each tenant, and each of its actors, uses of the engine: a fold along with the jobs' events.

Jobs that wait and jobs that are held, runtime of the day, submissions of the last second. What is used up to
which limit is quotas.py's to say. No clock, no I/O.

A day is one of UTC. Runtime is counted from an attempt's start to its end, and no more than the time limit it
has: what its worker did after that was not the tenant's. While it is held its limit is reserved, so that no
lease takes a tenant over what it may use in a day.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from skep.trace.clock import HOUR, MINUTE, SECOND

if TYPE_CHECKING:  # what is counted here is a part of what is recorded there
    from skep.namespaces.jobs.record import Attempt, Job, Submitted

DAY: Final = 24 * HOUR
OWED_MAX_NS: Final = 2 * SECOND  # more than a second's worth is not lent: the clock was put back.
# The states that count, as waiting and as held.
COUNTED: Final = {
    "queued": (1, 0), "delayed": (1, 0), "leased": (0, 1), "running": (0, 1),
    "": (0, 0), "succeeded": (0, 0), "failed": (0, 0), "cancelled": (0, 0),
}  # fmt: skip
# What a job that goes from the one state ("": it was not there) to the other changes of them.
CHANGES: Final = {
    (was, now): (waits - waited, held - was_held)
    for was, (waited, was_held) in COUNTED.items()
    for now, (waits, held) in COUNTED.items()
}
ALL: Final = ""  # in an actor's place: all of the tenant's together.


class Used(msgspec.Struct, frozen=True):
    """What one actor of a tenant uses, or all of them."""

    waiting: int = 0  # jobs that have not ended and are not held: queued or delayed
    held: int = 0
    reserved_ns: int = 0  # the time limits of the attempts that are held, together
    ran_ns: int = 0  # of the attempts that ended on the day
    paid_ns: int = 0  # when its submissions have been paid for; 0: it owes nothing

    def owed_ns(self, now_ns: int) -> int:
        """How long its submissions are still being paid for."""
        owed_ns = self.paid_ns - now_ns
        return owed_ns if 0 < owed_ns <= OWED_MAX_NS else 0


NOTHING: Final = Used()


@dataclass
class Usage:
    by_tenant: dict[str, dict[str, Used]] = field(default_factory=dict)  # tenant -> actor, or ALL
    day: int = 0  # of ``ran_ns``, from the epoch
    swept: int = 0  # the minute in which rows that came to nothing were last looked for

    def copy(self) -> Usage:
        return Usage({tenant: rows.copy() for tenant, rows in self.by_tenant.items()}, self.day, self.swept)

    def of(self, tenant: str, actor: str = ALL) -> Used:
        rows = self.by_tenant.get(tenant)
        return NOTHING if rows is None else rows.get(actor, NOTHING)

    def ran_ns(self, used: Used, now_ns: int) -> int:
        """What ran on the day of ``now_ns``."""
        return used.ran_ns if now_ns // DAY <= self.day else 0

    def moved(self, before: Job | None, after: Job, time_ns: int) -> None:
        """A job's record was ``before`` (None: it was not there) and is ``after``."""
        if time_ns // MINUTE > self.swept:
            self._turn_to(time_ns)
        waiting, held = CHANGES["" if before is None else before.state, after.state]
        request = after.request
        cost_ns, actor_cost_ns = (request.cost_ns, request.actor_cost_ns) if before is None else (0, 0)
        if not (held or waiting or cost_ns or actor_cost_ns):
            return
        ran_ns = attempt_ns(request, after.attempts[-1], self.day) if held < 0 else 0
        reserved_ns = held * bound_ns(request) if held else 0
        rows = self.by_tenant.get(request.tenant, {})
        for actor, cost in ((ALL, cost_ns), (request.actor, actor_cost_ns)):
            used = rows.get(actor, NOTHING)
            paid_ns = time_ns + used.owed_ns(time_ns) + cost if cost or used.paid_ns else 0
            rows[actor] = Used(
                used.waiting + waiting,
                used.held + held,
                used.reserved_ns + reserved_ns,
                used.ran_ns + ran_ns,
                paid_ns if paid_ns > time_ns else 0,
            )
        self._stand(request.tenant, rows, (ALL, request.actor))

    def _stand(self, tenant: str, rows: dict[str, Used], actors: Iterable[str]) -> None:
        """The tenant's rows, of which those of the actors are new: nothing is kept of who uses nothing."""
        for actor in actors:
            if rows.get(actor) == NOTHING:
                del rows[actor]
        if rows:
            self.by_tenant[tenant] = rows
        else:
            self.by_tenant.pop(tenant, None)

    def _turn_to(self, time_ns: int) -> None:
        """Forget who uses nothing any more, every minute, and what ran, with the day."""
        self.swept = time_ns // MINUTE
        is_new = time_ns // DAY > self.day
        self.day = max(self.day, time_ns // DAY)
        for tenant, rows in list(self.by_tenant.items()):
            for actor, used in rows.items():
                ran_ns = 0 if is_new else used.ran_ns
                paid_ns = used.paid_ns if used.paid_ns > time_ns else 0
                if (ran_ns, paid_ns) != (used.ran_ns, used.paid_ns):
                    rows[actor] = msgspec.structs.replace(used, ran_ns=ran_ns, paid_ns=paid_ns)
            self._stand(tenant, rows, list(rows))


def bound_ns(request: Submitted) -> int:
    """How long one attempt of the job may run, at most; 0: there is no limit."""
    timeout_ns, runtime_ns = request.timeout_ns, request.runtime_ns
    return min(timeout_ns, runtime_ns) if timeout_ns and runtime_ns else timeout_ns or runtime_ns


def attempt_ns(request: Submitted, attempt: Attempt, day: int) -> int:
    """How long an attempt that has ended ran on the day, as far as it counts."""
    if not attempt.started_ns:
        return 0
    most_ns = attempt.started_ns + bound_ns(request) if bound_ns(request) else attempt.ended_ns
    return max(0, min(attempt.ended_ns, most_ns) - max(attempt.started_ns, day * DAY))
