"""Ports as a command line names them."""

from __future__ import annotations

import argparse

_LAST = 65535


def port(text: str) -> int:
    """A port to listen on, as argparse's `type`; 0 is any free one. Larger ones would wrap around unsaid.

    Raises:
        argparse.ArgumentTypeError: it is no such number.
    """
    number = int(text) if text.isdecimal() and len(text) <= len(str(_LAST)) else None
    if number is None or number > _LAST:
        raise argparse.ArgumentTypeError(f"a port is a whole number from 0 to {_LAST}, 0 for any free one.")
    return number
