"""Compares the ledger of a project that `generate.py` made with what DuckDB computes from the same files.

    python compare.py FOLDER

For every rule, `duckdb/RULE.sql` gives the charges that should stand; one that was taken back does not. All numbers are
compared exactly. Prints a line for each rule and its first differences; exit code 1 if there is any.
"""

import sys
from collections import defaultdict
from decimal import Context, Decimal, Inexact
from pathlib import Path

import deltalake
import duckdb

HERE = Path(__file__).parent
SHOWN = 10
EXACT = Context(prec=80, traps=[Inexact])
Charges = dict[tuple, dict[str, Decimal | None]]


def number(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise SystemExit(f"{name}: {value!r} is no exact number")
    return Decimal(value)


def plain(value: Decimal | None) -> str:
    return "null" if value is None else f"{EXACT.normalize(value):f}"


def rows(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple]]:
    """Columns and rows; instants are microseconds since 1970."""
    described = connection.execute(f"DESCRIBE {query}").fetchall()
    columns = [f'epoch_us("{row[0]}") AS "{row[0]}"' if "TIME ZONE" in row[1] else f'"{row[0]}"' for row in described]
    found = connection.execute(f"SELECT {', '.join(columns)} FROM ({query})").fetchall()
    return [row[0] for row in described], found


def expected(connection: duckdb.DuckDBPyConnection, query: str, amounts: set[str]) -> tuple[list[str], list[str], Charges]:
    """The names that tell charges apart, those of their numbers, and the charges."""
    columns, found = rows(connection, query)
    names = [name.removesuffix("_e18") for name in columns]
    keys, values = sorted(set(names) - amounts), sorted(set(names) & amounts)
    charges: Charges = {}
    for row in found:
        given = {}
        for column, name, value in zip(columns, names, row):
            if name in amounts and value is not None:
                value = EXACT.scaleb(number(column, value), -18) if column.endswith("_e18") else number(column, value)
            given[name] = value
        key = tuple(given[name] for name in keys)
        if key in charges:
            raise SystemExit(f"DuckDB gives {key} twice")
        charges[key] = {name: given[name] for name in values}
    return keys, values, charges


def standing(connection: duckdb.DuckDBPyConnection, rule: str, keys: list[str], values: list[str]) -> Charges:
    """The charges that no row of the ledger takes back. What is owed must be the sum of all rows, too."""
    columns = [*keys, *values, "charge_id", "reverses"]
    named, found = rows(connection, f"SELECT {', '.join(columns)} FROM charges WHERE rule = '{rule}'")
    entries = [dict(zip(named, row)) for row in found]
    reversed_ids = {entry["reverses"] for entry in entries}
    charges: Charges = {}
    owed: dict[tuple, Decimal] = defaultdict(Decimal)
    for entry in entries:
        key = tuple(entry[name] for name in keys)
        owed[key] = EXACT.add(owed[key], number("amount", entry["amount"]))
        if entry["reverses"] is None and entry["charge_id"] not in reversed_ids:
            if key in charges:
                raise SystemExit(f"{rule}: two charges stand for {key}")
            charges[key] = {name: entry[name] for name in values}
    for key, total in owed.items():
        stands = charges[key]["amount"] if key in charges else 0
        if total != stands:
            raise SystemExit(f"{rule}: the rows of {key} add up to {plain(total)}, but {stands} stands")
    return charges


def differences(keys: list[str], values: list[str], wanted: Charges, found: Charges) -> list[str]:
    lines = []
    for key in sorted(wanted.keys() | found.keys(), key=repr):
        name = ", ".join(f"{column} {value}" for column, value in zip(keys, key))
        if key not in found:
            lines.append(f"{name}: only DuckDB has it, {wanted[key]}")
        elif key not in wanted:
            lines.append(f"{name}: only the ledger has it, {found[key]}")
        else:
            for column in values:
                want, have = wanted[key][column], found[key][column]
                if want != have:
                    lines.append(f"{name}: {column} is {plain(have)} in the ledger and {plain(want)} by DuckDB")
    return lines


def main(folder: Path) -> int:
    connection = duckdb.connect()
    connection.execute("SET VARIABLE project = $1", [str(folder)])
    connection.execute((HERE / "tables.sql").read_text())
    ledger = deltalake.DeltaTable(str(folder / "lake/charges"))
    files = ", ".join(f"'{uri}'" for uri in ledger.file_uris())
    connection.execute(f"CREATE VIEW charges AS FROM read_parquet([{files}], hive_partitioning = true, union_by_name = true)")
    amounts = {row[0] for row in connection.execute("DESCRIBE charges").fetchall() if row[1].startswith("DECIMAL")}
    rules = sorted(path.stem for path in (folder / "rules").glob("*.sql"))
    unknown = set(rules) ^ {path.stem for path in (HERE / "duckdb").glob("*.sql")}
    if unknown:
        raise SystemExit(f"only one side has {', '.join(sorted(unknown))}")
    compared, wrong = 0, 0
    for rule in rules:
        keys, values, wanted = expected(connection, (HERE / f"duckdb/{rule}.sql").read_text(), amounts)
        if not wanted:
            raise SystemExit(f"{rule}: DuckDB has no charge, so nothing is compared")
        lines = differences(keys, values, wanted, standing(connection, rule, keys, values))
        compared, wrong = compared + len(wanted) * len(values), wrong + len(lines)
        print(f"{rule:20} {len(wanted):5} charges  {len(values)} numbers each  {len(lines)} differences")
        for line in lines[:SHOWN]:
            print(f"    {line}")
    print(f"{compared} numbers compared, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
