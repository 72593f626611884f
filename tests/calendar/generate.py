"""Writes `schemas/tests/calendar.csv`: calendar windows as Python's zoneinfo sees them, to check ours against.

    python3 generate.py

The file in the repository was made with tzdata 2025b (Debian 2025b-0+deb12u2) and Python's zoneinfo and datetime, which
share nothing with the library that Ratemill uses. Years 2005 to 2025 only: what came later was still a forecast.

A window is half-open, [start, end). It begins at the first instant of a local day: where midnight occurs twice, the
first of the two, and where it does not occur, the first instant after the gap. So windows cover all time once; an
instant belongs to the window that holds it, even where clocks went back over midnight and show the former day again.

Columns: kind (day, week, month, quarter, year, period), zone, anchor_day (of a period: a month from that day, cut to the
month's length; else empty), instant, start, end. Instants are UTC.
"""

import csv
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

OUTPUT = Path(__file__).parents[2] / "schemas/tests/calendar.csv"
ZONES = [
    "UTC", "Europe/London", "Europe/Dublin", "Europe/Berlin", "Europe/Istanbul", "Europe/Moscow",
    "America/New_York", "America/St_Johns", "America/Havana", "America/Caracas", "America/Sao_Paulo", "America/Santiago",
    "America/Nuuk", "Africa/Casablanca", "Africa/Cairo", "Asia/Beirut", "Asia/Amman", "Asia/Tehran", "Asia/Kolkata",
    "Asia/Kathmandu", "Asia/Pyongyang", "Australia/Brisbane", "Australia/Lord_Howe", "Pacific/Auckland", "Pacific/Chatham",
    "Pacific/Apia", "Pacific/Kiritimati", "Antarctica/Casey",
]
FIRST = datetime(2005, 1, 20, tzinfo=timezone.utc)
LAST = datetime(2025, 11, 20, tzinfo=timezone.utc)
TRANSITIONS_MAX = 4
MICROSECOND = timedelta(microseconds=1)


def local(instant: datetime, zone: ZoneInfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None)


def first_where(low: datetime, high: datetime, holds) -> datetime:
    """The first instant, to the second, from which `holds`: not so at `low`, so at `high`."""
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def day_start(day: date, zone: ZoneInfo) -> datetime:
    midnight = datetime.combine(day, time())
    instant = midnight.replace(tzinfo=zone, fold=0).astimezone(timezone.utc)
    if local(instant, zone) == midnight:
        return instant
    return first_where(instant - timedelta(hours=36), instant + timedelta(hours=36), lambda at: local(at, zone) >= midnight)


def month_start(months: int, anchor: int) -> date:
    """The anchor day of a month that is counted from the year 0."""
    year, month = months // 12, months % 12 + 1
    return date(year, month, min(anchor, monthrange(year, month)[1]))


def period_start(kind: str, day: date, anchor: int, steps: int) -> date:
    """First day of the period that holds `day`, or of one some steps later."""
    if kind == "day":
        return day + timedelta(days=steps)
    if kind == "week":
        return day - timedelta(days=day.isoweekday() - 1) + timedelta(days=7 * steps)
    length = {"month": 1, "period": 1, "quarter": 3, "year": 12}[kind]
    months = day.year * 12 + day.month - 1
    months -= months % length
    if day < month_start(months, anchor):
        months -= length
    return month_start(months + steps * length, anchor)


def window(kind: str, instant: datetime, zone: ZoneInfo, anchor: int) -> tuple[datetime, datetime]:
    """The window that holds the instant, found among those around its local date."""
    day = local(instant, zone).date()
    bounds = [day_start(period_start(kind, day, anchor, steps), zone) for steps in range(-2, 4)]
    found = [(start, end) for start, end in zip(bounds, bounds[1:]) if start <= instant < end]
    assert len(found) == 1, (kind, instant, zone, anchor)
    return found[0]


def transitions(zone: ZoneInfo) -> Iterator[datetime]:
    step, instant = timedelta(hours=6), FIRST
    while instant < LAST:
        before, after = instant.astimezone(zone).utcoffset(), (instant + step).astimezone(zone).utcoffset()
        if before != after:
            yield first_where(instant, instant + step, lambda at: at.astimezone(zone).utcoffset() == after)
        instant += step


def touches_midnight(instant: datetime, zone: ZoneInfo) -> bool:
    """Whether clocks change at midnight or over it, where calendars go wrong."""
    before, after = local(instant - MICROSECOND, zone) + MICROSECOND, local(instant, zone)
    low, high = min(before, after), max(before, after)
    return datetime.combine(high.date(), time()) >= low


def chosen(zone: ZoneInfo) -> list[datetime]:
    """Some changes of clocks, the odd ones first."""
    every = list(transitions(zone))
    odd = [instant for instant in every if touches_midnight(instant, zone)]
    large = [instant for instant in every if abs(local(instant, zone) - local(instant - MICROSECOND, zone)) > timedelta(hours=2)]
    picked = dict.fromkeys([*large[:2], *spread(odd, 2), *every[-1:], *spread(every, TRANSITIONS_MAX)])
    return sorted(list(picked)[:TRANSITIONS_MAX])


def spread(found: list[datetime], count: int) -> list[datetime]:
    """Some of them, at about equal distances."""
    return [found[index * len(found) // count] for index in range(min(count, len(found)))]


def instants(name: str, index: int) -> Iterator[tuple[str, int, datetime]]:
    """Kind, anchor day and instant of the rows of a zone."""
    zone = ZoneInfo(name)
    for instant in chosen(zone):
        for shift in (-MICROSECOND, timedelta(0), timedelta(minutes=40)):
            yield "day", 1, instant + shift
        yield "day", 1, day_start(local(instant, zone).date() + timedelta(days=1), zone) - MICROSECOND
        yield "week", 1, instant
        yield "month", 1, instant
        yield "period", local(instant, zone).day, instant
    days = [(2008, 2, 29), (2010, 2, 28), (2011, 12, 31), (2012, 2, 29), (2015, 6, 30), (2021, 9, 30), (2024, 2, 29)]
    for offset, day in enumerate(days):
        end = day_start(date(*day) + timedelta(days=1), zone)
        kind = ["day", "week", "month", "quarter", "year"][(index + offset) % 5]
        yield kind, 1, end - MICROSECOND
        yield kind, 1, end
    # Every anchor occurs, the last days of a month in every zone.
    for offset, anchor in enumerate([index % 28 + 1, 28, 29, 30, 31]):
        year = 2006 + (index + 5 * offset) % 19
        for month in (1, 2, 3, 4) if anchor > 28 else (2,):
            start = day_start(month_start(year * 12 + month - 1, anchor), zone)
            yield "period", anchor, start
            if month % 2:
                yield "period", anchor, start - MICROSECOND


def text(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


def rows() -> Iterator[tuple]:
    for index, name in enumerate(ZONES):
        zone = ZoneInfo(name)
        for kind, anchor, instant in dict.fromkeys(instants(name, index)):
            start, end = window(kind, instant, zone, anchor)
            if FIRST.year <= start.year and end.year <= LAST.year:
                yield kind, name, anchor if kind == "period" else "", text(instant), text(start), text(end)


if __name__ == "__main__":
    with OUTPUT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "zone", "anchor_day", "instant", "start", "end"])
        writer.writerows(rows())
