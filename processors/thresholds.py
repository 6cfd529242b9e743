"""Below what a sku is low on stock: `--low-stock` for all, `[low-stock-of]` in the file for some.

[low-stock-of]
PORK-BELLY = "50"
"HAM.SMOKED" = 12.5
"""

from __future__ import annotations

import re
from typing import Any

from processors.quantity import (
    QuantityError,
    above_zero,
    thousandths_of_number,
    thousandths_of_text,
)

THRESHOLDS_MAX = 10_000
SKU = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Stands for every sku that is not named.
ALL_OTHERS = ""


class ThresholdError(Exception):
    """A threshold that can't be used; the text names value, limit and key."""


def read_thresholds(table: Any, where: str) -> dict[str, int]:
    """Thousandths by sku. Raises ThresholdError."""
    if not isinstance(table, dict):
        raise ThresholdError(f"low-stock-of in {where} must be a table, headed [low-stock-of]")
    if len(table) > THRESHOLDS_MAX:
        raise ThresholdError(
            f"low-stock-of in {where} has {len(table)} skus: at most {THRESHOLDS_MAX}"
        )
    return {sku: _read(sku, value, where) for sku, value in table.items()}


def threshold(value: Any) -> int:
    """Thousandths of a text or a number. Raises QuantityError."""
    if isinstance(value, str):
        return above_zero(thousandths_of_text(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QuantityError('must be a quantity, as in "12.5"')
    if isinstance(value, int):  # not written out first, which Python refuses for very long ones
        return above_zero(1000 * value)
    return above_zero(thousandths_of_number(repr(value)))


def _read(sku: str, value: Any, where: str) -> int:
    if not SKU.fullmatch(sku):
        raise ThresholdError(
            f"low-stock-of in {where}: {sku[:80]!r} is no sku, 1 to 64 of A-Z a-z 0-9 . _ - (one "
            "with a dot stands in quotes)"
        )
    try:
        return threshold(value)
    except QuantityError as error:
        raise ThresholdError(f"low-stock-of.{sku} in {where}: {error.detail}") from error
