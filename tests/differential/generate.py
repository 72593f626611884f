"""Writes a Ratemill project with three months of usage: the same bytes for the same seed.

    python generate.py FOLDER [SEED]

FOLDER gets the rules and declarations that lie beside this file, `reference/*.csv` and `usage/*.ndjson`: CloudEvents
of February to April 2026, out of order, some of them sent twice. `usage/2-late.ndjson` arrives after the windows were
published, so that the ledger holds corrections.
"""

import json
import random
import shutil
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

HERE = Path(__file__).parent
CUSTOMERS = [f"c{number:02}" for number in range(1, 41)]
CURRENCIES = ["EUR", "GBP", "USD", "JPY", "KWD"]
PLANS = ["basic", "plus", "pro"]
REGIONS = ["eu", "us", "ap"]
FIRST = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
LAST = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
ZONES = ["UTC", "Europe/London", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
# The last two have contracts and no usage at all.
IDLE = {"c39", "c40"}


def fixed(units: int, places: int) -> str:
    """A number of 10^-places as exact text."""
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), 10**places)
    return f"{sign}{whole}.{fraction:0{places}}" if places else f"{sign}{whole}"


def boundaries() -> list[datetime]:
    """Instants at which days, months and tariffs begin, the microseconds around them, and those of clock changes."""
    days = [(2026, 2, 1), (2026, 3, 1), (2026, 3, 16), (2026, 3, 29), (2026, 3, 30), (2026, 4, 1), (2026, 4, 5), (2026, 5, 1)]
    edges = [datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(timezone.utc) for day in days for zone in ZONES]
    edges += [
        datetime(2026, 3, 8, 7, tzinfo=timezone.utc),
        datetime(2026, 3, 29, 1, tzinfo=timezone.utc),
        datetime(2026, 4, 4, 15, tzinfo=timezone.utc),
    ]
    return sorted({edge + timedelta(microseconds=shift) for edge in edges for shift in (-1, 0, 1)})


class Number(str):
    """A quantity that is written as a JSON number, not as a text."""


class Usage:
    """Collects CloudEvents."""

    def __init__(self, seed: int, subjects: list[str]) -> None:
        self.random = random.Random(seed)
        self.subjects = subjects
        self.edges = boundaries()
        self.events: list[dict] = []

    def time(self) -> datetime:
        if self.random.random() < 0.15:
            return self.random.choice(self.edges)
        span = (LAST - FIRST) // timedelta(milliseconds=1)
        return FIRST + timedelta(milliseconds=self.random.randrange(span))

    def subject(self) -> str:
        # Squared, so that some customers use far more than others.
        return self.subjects[int(self.random.random() ** 2 * len(self.subjects))]

    def add(self, meter: str, subject: str, time: datetime, quantity: str, **data: object) -> None:
        zone = self.random.choice([timezone.utc, timezone.utc, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-4))])
        value = Number(quantity) if self.random.random() < 0.3 else quantity
        self.events.append({
            "specversion": "1.0",
            "source": f"gateway-{len(self.events) % 3}",
            "id": f"{meter}-{len(self.events):05}",
            "type": meter,
            "subject": subject,
            "time": time.astimezone(zone).isoformat().replace("+00:00", "Z"),
            "data": {"quantity": value, **{key: value for key, value in data.items() if value is not None}},
        })

    def quantity(self, largest: int) -> str:
        return fixed(self.random.randrange(1, largest * 10**6), 6)

    def everything(self) -> None:
        choice, randrange, chance = self.random.choice, self.random.randrange, self.random.random
        for _ in range(900):
            sign = -1 if chance() < 0.04 else 1
            # At a price of 0.125, the first are exactly half a cent, yen or fils.
            halves = choice([40_000, 120_000, 4_000_000, 12_000_000, 4_000, 12_000])
            amount = fixed(sign * (halves if chance() < 0.2 else randrange(1, 80 * 10**6)), 6)
            self.add("transfer", self.subject(), self.time(), amount, region=choice([*REGIONS, "moon", None]), priority=randrange(5))
        for _ in range(600):
            self.add("storage", self.subject(), self.time(), self.quantity(120))
        for _ in range(900):
            self.add("call", self.subject(), self.time(), str(randrange(1, 40)), user=f"user-{randrange(60)}")
        # Few days, so that quarters of an hour hold several events.
        days = [(2, 3), (2, 17), (3, 3), (3, 17), (3, 29), (4, 3), (4, 17), (4, 29)]
        for _ in range(900):
            time = datetime(2026, *choice(days), tzinfo=timezone.utc)
            self.add("energy", choice(self.subjects[:12]), time + timedelta(seconds=randrange(36_000, 46_800)), self.quantity(9))
        for _ in range(700):
            april = datetime(2026, 4, randrange(1, 10), randrange(24), randrange(60), tzinfo=timezone.utc)
            begin = self.time() if chance() < 0.5 else april
            end = None if chance() < 0.05 else (begin + timedelta(milliseconds=randrange(1, 50_000_000))).isoformat()
            self.add("session", self.subject(), begin, "1", end=end)
        for subject in self.subjects[:20]:
            reading, time = randrange(10**6), FIRST
            for _ in range(25):
                time += timedelta(minutes=randrange(60, 9_000), microseconds=randrange(10**6))
                # A few meters are replaced and begin again.
                reading = randrange(10**6) if chance() < 0.03 else reading + randrange(90 * 10**6)
                self.add("reading", subject, time, fixed(reading, 6))
        for _ in range(500):
            cost = fixed(randrange(1, 3 * 10**14), 14)
            self.add("job", self.subject(), self.time(), self.quantity(12), cost=cost, priority=randrange(5))
        for _ in range(60):
            self.add("call", "nobody", self.time(), "3", user="user-0")

    def write(self, folder: Path) -> None:
        self.random.shuffle(self.events)
        late = self.events[::7]
        early = [event for index, event in enumerate(self.events) if index % 7]
        again = self.random.sample(early, 150)
        first, second = early[: len(early) // 2], early[len(early) // 2 :]
        write_lines(folder / "usage/0-first.ndjson", first + again[:50])
        write_lines(folder / "usage/1-second.ndjson", again[50:100] + second)
        write_lines(folder / "usage/2-late.ndjson", late + again[100:])


def write_lines(path: Path, events: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line(event) + "\n" for event in events))


def line(event: dict) -> str:
    text, quantity = json.dumps(event), event["data"]["quantity"]
    return text.replace(f'"quantity": "{quantity}"', f'"quantity": {quantity}') if isinstance(quantity, Number) else text


def contracts(chooser: random.Random) -> list[list[str]]:
    """Subject, customer, contract, plan, currency, base fee, first day, first day after."""
    rows = []
    for number, customer in enumerate(CUSTOMERS):
        currency = CURRENCIES[number % len(CURRENCIES)]
        for site in ["a", "b"] if number % 4 == 0 else ["a"]:
            subject, contract = f"{customer}-{site}", f"K-{customer}-{site}"
            plan, fee = chooser.choice(PLANS), fixed(chooser.randrange(1_000, 50_000), 2)
            head = [subject, customer, contract]
            if number % 5 == 1:
                # Another plan from a day within a month.
                day = chooser.choice(["2026-02-11", "2026-03-29", "2026-04-17"])
                rows.append([*head, plan, currency, fee, "2026-01-01", day])
                rows.append([*head, PLANS[(PLANS.index(plan) + 1) % 3], currency, fixed(chooser.randrange(1_000, 50_000), 2), day, ""])
            elif number % 5 == 2:
                rows.append([*head, plan, currency, fee, "2026-02-20", ""])
            elif number % 5 == 3:
                # A pause between two terms.
                rows.append([*head, plan, currency, fee, "2025-06-01", "2026-03-10"])
                rows.append([*head, plan, currency, fee, "2026-03-21", "2026-04-25"])
            else:
                rows.append([*head, plan, currency, fee, "2025-01-01", ""])
    return rows


def tiers(chooser: random.Random) -> list[list[str]]:
    items = {"storage": [50, 200, 600], "call": [8, 20, 35, 60, 120], "week": [10, 30, 60], "quarter": [100, 1_000]}
    rows = []
    for plan in PLANS:
        for item, bounds in items.items():
            for bound in [*bounds, None]:
                price, fee = fixed(chooser.randrange(1_000, 2_000_000), 6), fixed(chooser.choice([0, 0, 500, 1_250]), 2)
                # Calls are whole numbers and meet their bounds; others have six places, and so have their bounds.
                beyond = 0 if item in ("call", "week") else chooser.choice([0, 500_000, 1])
                up_to = "" if bound is None else fixed(bound * 10**6 + beyond, 6)
                rows.append([plan, item, up_to, price, fee])
    return rows


def tariffs(chooser: random.Random) -> list[list[str]]:
    bounds = ["2025-01-01", "2026-02-17", "2026-03-16", "2026-03-29", "2026-04-03", ""]
    return [
        [plan, fixed(chooser.randrange(50_000, 400_000), 6), begin, end]
        for plan in PLANS
        for begin, end in zip(bounds, bounds[1:])
    ]


def write_table(folder: Path, name: str, columns: str, rows: list[list[str]]) -> None:
    path = folder / f"reference/{name}.csv"
    path.write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")


def main(folder: Path, seed: int) -> None:
    for part in ["rules", "reference"]:
        shutil.copytree(HERE / part, folder / part, dirs_exist_ok=True)
    shutil.copy(HERE / "ratemill.toml", folder / "ratemill.toml")
    chooser = random.Random(seed)
    agreed = contracts(chooser)
    write_table(folder, "contracts", "subject,customer_id,contract_id,plan,currency,base_fee,valid_from,valid_to", agreed)
    minimums = [
        [customer, CURRENCIES[number % len(CURRENCIES)], fixed(chooser.randrange(9_000), 2)]
        for number, customer in enumerate(CUSTOMERS)
    ]
    write_table(folder, "customers", "customer_id,currency,minimum", minimums)
    regions = [["eu", "0.071234"], ["us", "0.900001"], ["ap", "0.125"]]
    write_table(folder, "regions", "region,unit_price", regions)
    write_table(folder, "prices", "plan,item,up_to,unit_price,flat_fee", tiers(chooser))
    write_table(folder, "tariffs", "plan,unit_price,valid_from,valid_to", tariffs(chooser))
    usage = Usage(seed, sorted({row[0] for row in agreed if row[1] not in IDLE}))
    usage.everything()
    usage.write(folder)
    print(f"{len(usage.events)} events, {len(CUSTOMERS)} customers")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
