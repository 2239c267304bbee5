"""Counts which of an exchange's messages were of use, by one rule for every engine."""

from __future__ import annotations

from feddkd.engines.collection import Collection
from feddkd.engines.forms import Forms
from feddkd.traffic import Traffic
from feddkd.transport.messages import Verdict, receipt_message


def useful_traffic(collection: Collection, forms: Forms) -> Traffic:
    """Add up, for each client that replied, its broadcast, its reply and its receipt, each message once.

    What is sent again after a break, a whole model to a client that should have held the one before it, and all
    messages of clients that do not count are no part of it.

    Args:
        collection: all replies are in.
        forms: how the broadcast was sent.

    Returns:
        The bytes on the wire; payloads are not counted.
    """
    receipt_bytes = len(receipt_message(collection.exchange.id, Verdict.VERDICT_OK))
    useful = Traffic()
    for client in collection.replies():
        useful.wire_bytes_down += forms.planned_bytes(client) + receipt_bytes
        useful.wire_bytes_up += collection.contributions[client].message_bytes
    return useful
