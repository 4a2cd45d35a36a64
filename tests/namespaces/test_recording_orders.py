"""Orders to record: who may give which, what they reach, and when they end."""

from __future__ import annotations

import pytest

from skep.fs import ctl
from skep.fs.ctl import parse_line
from skep.namespaces.log.recordings import (
    ORDERS_MAX,
    OWN,
    VERBS,
    Ordered,
    Orders,
    Recorded,
    Unordered,
    apply,
    decide,
)
from skep.namespaces.order import HIVE_TENANT, Order
from skep.trace.rules import Meta, Refusal

RED = "red/a/a"
META = Meta(1, 1, "01JD")


def write(orders: Orders, text: str, tenant: str = HIVE_TENANT) -> str:
    """The reply; its events are applied."""
    command = parse_line(text)
    ctl.check(command, {**VERBS, **OWN})
    order = Order(command.verb, command.args, "*/ctl", "trace", "unix:ann", "operator", tenant, 1, "01JD")
    decision = decide(orders, order)
    for event in decision.events:
        apply(orders, event, META)
    return decision.reply


def test_a_bare_on_or_off_is_a_value_of_set() -> None:
    assert {"session": "s1", "set": "on"} == parse_line("record session=s1 on").args
    assert {"session": "s1", "set": "off"} == parse_line("record session=s1 off").args
    assert {"session": "on"} == parse_line("record session=on").args


def test_orders_are_given_and_taken_back() -> None:
    orders = Orders()
    assert "s1" == write(orders, "record session=s1 on")
    assert "unix:ann" == write(orders, "record principal=unix:ann set=on", RED)
    assert ({"s1": HIVE_TENANT}, [(RED, "unix:ann")]) == (orders.sessions, list(orders.principals))
    write(orders, "record session=s1 off")
    write(orders, "record principal=unix:ann off", RED)
    assert not orders


def test_an_order_given_again_is_no_other_order() -> None:
    orders = Orders()
    for _ in range(2):
        assert "s1" == write(orders, "record session=s1 on")
    # The hive's own reaches whom the tenant's did; the other way round nothing is gained.
    assert "s1" == write(orders, "record session=s1 on", RED)
    assert {"s1": HIVE_TENANT} == orders.sessions


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("record on", "expected session= or principal="),
        ("record session=s1 principal=unix:ann on", "expected session= or principal="),
        ("record session=s2 off", "s2 is not recorded"),
        ("record session=s1 off", "s1 is not recorded"),  # by another tenant
        ("record principal=unix:bob off", "unix:bob is not recorded"),
    ],
)
def test_what_cannot_be_ordered_is_refused(text: str, why: str) -> None:
    orders = Orders({"s1": "blue/a/a"}, {(HIVE_TENANT, "unix:bob"): None})
    with pytest.raises(Refusal, match=why):
        write(orders, text, RED)


def test_there_are_only_so_many_orders() -> None:
    orders = Orders({str(n): HIVE_TENANT for n in range(ORDERS_MAX - 1)})
    write(orders, "record principal=unix:bob on")
    with pytest.raises(Refusal, match=f"max={ORDERS_MAX}"):
        write(orders, "record session=more on")
    write(orders, "record session=1 off")
    write(orders, "record session=more on")


def test_a_tenants_order_reaches_its_own_sessions_and_the_hives_everybodys() -> None:
    orders = Orders({}, {(RED, "unix:ann"): None, (HIVE_TENANT, "unix:bob"): None})
    assert [True, False] == [orders.reach("unix:ann", tenant) for tenant in (RED, HIVE_TENANT)]
    assert [True, True] == [orders.reach("unix:bob", tenant) for tenant in (RED, HIVE_TENANT)]
    assert [True, False] == [Ordered(RED, True, "s1").reaches(tenant) for tenant in (RED, "blue/a/a")]


def test_a_recording_that_has_ended_ends_its_order_and_a_new_process_all() -> None:
    orders = Orders({"s1": RED, "s2": RED}, {(RED, "unix:ann"): None})
    apply(orders, Recorded(RED, "s1", "full"), META)
    assert {"s2": RED} == orders.sessions
    assert "ok" == write(orders, "unordered")
    assert not orders
    assert decide(orders, Order("unordered", {}, "*", "trace", "", "", "", 1, "")).events == ()
    apply(orders, Unordered(), META)


def test_what_is_said_of_an_end_is_all_of_it() -> None:
    orders = Orders({"s1": RED})
    said = f"recorded session=s1 why=full file=s1.9pt messages=7 lost=1 size=900 link={'ab' * 32}"
    command = parse_line(said)
    ctl.check(command, OWN)
    order = Order(command.verb, command.args, "*", "trace", "hive", "hive", RED, 1, "01JD")
    (event,) = decide(orders, order).events
    assert Recorded(RED, "s1", "full", "s1.9pt", 7, 1, 900, "ab" * 32) == event
