"""FEFO against a model that shares no idea with it: one thousandth at a time."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from processors.fefo import Lack, Portion, ReadLots, Shelf, StockedLot, allocate
from processors.schema import Line, Order

MOMENT = 5


def order(*lines: tuple[str, int]) -> Order:
    return Order("c", [Line(*line) for line in lines])


def reader(lots: Iterable[StockedLot], moment: int, page: int) -> ReadLots:
    """What a database would answer: usable lots behind the last one, `page` at a time."""
    usable = sorted(lot for lot in lots if lot.expires_us > moment and lot.available > 0)

    def read(last: StockedLot | None) -> list[StockedLot]:
        return [lot for lot in usable if last is None or lot > last][:page]

    return read


def shelves_of(
    stock: dict[str, list[StockedLot]], moment: int = MOMENT, page: int = 2, slack: int = 0
) -> dict[str, Shelf]:
    """`slack`: what a shelf believes to have beyond that, until it asks."""
    return {
        sku: Shelf(
            reader(lots, moment, page),
            slack + sum(lot.available for lot in lots if lot.expires_us > moment),
            lambda: slack,
        )
        for sku, lots in stock.items()
    }


def model(
    stock: dict[str, list[StockedLot]], orders: list[Order], moment: int
) -> list[tuple[str | None, list[Portion]]]:
    """The brute force: copies everything, hands out single thousandths, undoes a failed order."""
    left = {sku: {lot.number: lot.available for lot in lots} for sku, lots in stock.items()}
    answers: list[tuple[str | None, list[Portion]]] = []
    for one in orders:
        if any(line.sku not in stock for line in one.lines):
            answers.append(("unknown_sku", []))
            continue
        trial = {sku: dict(balances) for sku, balances in left.items()}
        units: list[tuple[str, int]] = []
        short = False
        for line in one.lines:
            for _ in range(line.thousandths):
                best = None
                for lot in stock[line.sku]:
                    if lot.expires_us <= moment or trial[line.sku][lot.number] == 0:
                        continue
                    key = (lot.expires_us, lot.received_us, lot.lot_id.encode())
                    if best is None or key < best[0]:
                        best = (key, lot.number)
                if best is None:
                    short = True
                    break
                trial[line.sku][best[1]] -= 1
                units.append((line.sku, best[1]))
        if short:
            answers.append(("insufficient_stock", []))
            continue
        left = trial
        answers.append((None, merged(units)))
    return answers


def merged(units: list[tuple[str, int]]) -> list[Portion]:
    portions: list[Portion] = []
    for sku, number in units:
        if portions and portions[-1][:2] == (sku, number):
            portions[-1] = Portion(sku, number, portions[-1].thousandths + 1)
        else:
            portions.append(Portion(sku, number, 1))
    return portions


# Few values, so that ties in every part of the key and expiry at the moment itself are common.
few = st.integers(MOMENT - 2, MOMENT + 2)


@st.composite
def stocks(draw: st.DrawFn) -> dict[str, list[StockedLot]]:
    stock: dict[str, list[StockedLot]] = {}
    for sku in draw(st.sampled_from([["A"], ["A", "B"], ["B", "A"]])):
        keys = draw(
            st.lists(
                st.tuples(few, few, st.sampled_from(["a", "B", "b-1", "b.1", "b1", "é", "ÿ"])),
                min_size=1,
                max_size=8,
                unique_by=lambda key: key[2],
            )
        )
        stock[sku] = [
            StockedLot(*key, number=len(stock) * 100 + i, available=draw(st.integers(0, 9)))
            for i, key in enumerate(keys)
        ]
    return stock


# C is never there.
lines = st.lists(
    st.tuples(st.sampled_from(["A", "A", "A", "B", "B", "C"]), st.integers(1, 7)),
    min_size=1,
    max_size=3,
    unique_by=lambda line: line[0],
)
many_orders = st.lists(lines.map(lambda found: order(*found)), max_size=8)


@settings(max_examples=400, deadline=None)
@given(stocks(), many_orders, st.integers(1, 4), st.integers(0, 3))
def test_it_gives_what_the_brute_force_gives(
    stock: dict[str, list[StockedLot]], orders: list[Order], page: int, slack: int
) -> None:
    verdicts = allocate(shelves_of(stock, page=page, slack=slack), orders)
    found = [(verdict.reason, verdict.portions) for verdict in verdicts]
    assert found == model(stock, orders, MOMENT)


@given(stocks(), many_orders)
def test_never_is_more_given_than_there_was(
    stock: dict[str, list[StockedLot]], orders: list[Order]
) -> None:
    left = {lot.number: lot.available for lots in stock.values() for lot in lots}
    for verdict in allocate(shelves_of(stock), orders):
        for portion in verdict.portions:
            left[portion.number] -= portion.thousandths
    assert all(rest >= 0 for rest in left.values())


def test_a_lot_that_expires_at_the_moment_is_not_used() -> None:
    lots = [StockedLot(MOMENT, 0, "at", 1, 10), StockedLot(MOMENT + 1, 0, "after", 2, 10)]
    (verdict,) = allocate(shelves_of({"A": lots}), [order(("A", 10))])
    assert verdict.portions == [Portion("A", 2, 10)]


def test_ties_go_by_received_then_by_the_bytes_of_the_lot_id() -> None:
    lots = [
        StockedLot(9, 2, "A", 1, 1),
        StockedLot(9, 1, "a", 2, 1),
        StockedLot(9, 1, "Z", 3, 1),
        StockedLot(9, 1, "10", 4, 1),
        StockedLot(9, 1, "9", 5, 1),
    ]
    (verdict,) = allocate(shelves_of({"A": lots}), [order(("A", 5))])
    assert [portion.number for portion in verdict.portions] == [4, 5, 3, 2, 1]


def test_what_an_order_leaves_in_a_lot_is_the_next_one_s() -> None:
    lots = [StockedLot(8, 0, "a", 1, 6), StockedLot(9, 0, "b", 2, 6)]
    verdicts = allocate(shelves_of({"A": lots}), [order(("A", n)) for n in (5, 3, 4)])
    assert [verdict.portions for verdict in verdicts] == [
        [Portion("A", 1, 5)],
        [Portion("A", 1, 1), Portion("A", 2, 2)],
        [Portion("A", 2, 4)],
    ]


def test_an_order_that_lacks_one_line_takes_nothing_of_the_others() -> None:
    stock = {"A": [StockedLot(9, 0, "a", 1, 5)], "B": [StockedLot(9, 0, "b", 2, 5)]}
    short, fits = allocate(shelves_of(stock), [order(("A", 5), ("B", 6)), order(("A", 5))])
    assert short.reason == "insufficient_stock"
    assert fits.portions == [Portion("A", 1, 5)]


def test_an_unknown_sku_is_said_before_a_shortage() -> None:
    stock = {"A": [StockedLot(9, 0, "a", 1, 5)]}
    (verdict,) = allocate(shelves_of(stock), [order(("A", 6), ("nowhere", 1))])
    assert verdict.reason == "unknown_sku"


def test_a_shelf_reads_no_further_than_orders_reach() -> None:
    pages: list[StockedLot | None] = []
    lots = [StockedLot(9, 0, f"{i:04}", i, 10) for i in range(1000)]
    inner = reader(lots, MOMENT, 4)

    def read(last: StockedLot | None) -> Iterable[StockedLot]:
        pages.append(last)
        return inner(last)

    allocate({"A": Shelf(read, 10_000)}, [order(("A", 15)), order(("A", 25))])
    assert len(pages) == 1


def test_an_order_for_more_than_there_is_reads_no_lots() -> None:
    def read(_last: StockedLot | None) -> Iterable[StockedLot]:
        raise AssertionError("it was known before")

    (verdict,) = allocate({"A": Shelf(read, 9)}, [order(("A", 10))])
    assert verdict.reason == "insufficient_stock"


def test_an_order_that_lacks_one_line_reads_no_lots_for_the_others() -> None:
    def read(_last: StockedLot | None) -> Iterable[StockedLot]:
        raise AssertionError("it was known before")

    shelves = {"A": Shelf(read, 10**6), "B": Shelf(read, 9)}
    (verdict,) = allocate(shelves, [order(("A", 10**6), ("B", 10))])
    assert verdict.lack == Lack("B", 10, 9)


def test_what_expired_a_moment_ago_does_not_make_it_read_on() -> None:
    pages = 0
    inner = reader([StockedLot(9, 0, f"{i:04}", i, 10) for i in range(1000)], MOMENT, 4)

    def read(last: StockedLot | None) -> Iterable[StockedLot]:
        nonlocal pages
        pages += 1
        return inner(last)

    (verdict,) = allocate({"A": Shelf(read, 10_050, lambda: 50)}, [order(("A", 10_001))])
    assert verdict.lack == Lack("A", 10_001, 10_000)
    assert pages == 1
