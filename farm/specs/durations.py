"""Durations as people write them."""

from __future__ import annotations

from farm.errors import InvalidRequest

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_UNITS_S = {"s": 1, "m": _MINUTE_S, "h": _HOUR_S, "d": _DAY_S}


def parse(text: str) -> int:
    """``90m`` → 5400 seconds.

    Raises:
        InvalidRequest
    """
    text = text.strip().lower()
    number, unit = text[:-1], _UNITS_S.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdecimal()):
        raise InvalidRequest(
            f"{text!r} isn't a duration", hint="use a number and s, m, h or d: 24h"
        )
    return int(number) * unit


def told(seconds: float) -> str:
    """``90 days``, ``36 h``, ``45 s``; what isn't whole in a unit by two of them: ``2 h 03 min``."""
    if seconds < _MINUTE_S:
        return f"{max(seconds, 0):.3g} s"
    whole = round(seconds)
    if whole == _DAY_S:
        return "1 day"
    for unit_s, unit in ((_DAY_S, "days"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if whole % unit_s == 0:
            return f"{whole // unit_s} {unit}"
    return by_two_units(seconds)


def by_two_units(seconds: float) -> str:
    """``1 min 05 s``, ``2 h 03 min``, ``3 days 04 h``: of a minute or more."""
    minutes, rest_s = divmod(round(seconds), _MINUTE_S)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} days {hours % 24:02d} h"
