"""The bodies that benchmarks post."""

from __future__ import annotations

import msgspec

from benchmarks.stock import SKUS

BODY_BYTES = 140


def body_of(sku: str) -> bytes:
    """An order of one line, BODY_BYTES long."""
    order = {
        "customer": "Funky Foods",
        "reference": "",
        "metadata": {"shop": "north-03"},
        "lines": [{"sku": sku, "quantity": "12.50"}],
    }
    order["reference"] = "web-2026-".ljust(BODY_BYTES - len(msgspec.json.encode(order)), "0")
    return msgspec.json.encode(order)


def long_body_of(lines: int) -> bytes:
    """An order of so many lines, each of another sku."""
    found = [{"sku": f"SKU-{number:04}", "quantity": "12.5"} for number in range(lines)]
    return msgspec.json.encode({"customer": "Funky Foods", "lines": found})


BODIES = [body_of(sku) for sku in SKUS]
