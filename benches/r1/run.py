#!/usr/bin/env python3
"""Rates a month of usage with Ratemill and writes its lines as Parquet, for comparison with other engines line by line.

  run.py --data DIR --out DIR [--ratemill PROGRAM] [--work DIR]

DIR has `parquet/*.parquet` (id, source, type, subject, time, value, …) and `ratecard/*.parquet` (contracts, tiers, tou_hours,
tou_rates). OUT gets `rated/` (lines by customer, meter and day) and `invoice/` (by customer, meter and currency, rounded
half-even to the cent). The last line of output is {"runs": [seconds]}: capture, dedup, rating and the ledger.
Needs Python with the package duckdb.
"""
import argparse, json, os, pathlib, shutil, subprocess, tempfile, time

import duckdb

HERE = pathlib.Path(__file__).parent
PERIOD = "2026-10"
REFERENCE = {
    "contracts": "SELECT customer AS subject, plan, currency, valid_from, valid_to FROM card ORDER BY customer, valid_from",
    "prices": "SELECT plan, meter, hi AS up_to, unit_price, flat_fee FROM card ORDER BY plan, meter, tier",
    "tou_hours": "SELECT meter, hour, band FROM card ORDER BY meter, hour",
    "tou_rates": "SELECT plan, band, adder FROM card ORDER BY plan, band",
}


def convert_rate_card(card, project):
    """The rate card as reference tables."""
    for table, query in REFERENCE.items():
        source = card / f"{'tiers' if table == 'prices' else table}.parquet"
        rows = query.replace("card", f"read_parquet('{source}')", 1)
        duckdb.execute(f"COPY ({rows}) TO '{project}/reference/{table}.csv' (FORMAT csv, HEADER)")


def project_lines(lake, out):
    """The ledger, net, in the columns that the comparison reads; decimals stay decimals."""
    charges = f"read_parquet('{lake}/charges/*/*.parquet', hive_partitioning = true)"
    shape = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARTITION_BY (billing_period), OVERWRITE_OR_IGNORE"
    duckdb.execute("SET TimeZone = 'UTC'")
    duckdb.execute(f"""CREATE TABLE lines AS
        SELECT customer_id AS customer, item AS meter, CAST(day AS DATE) AS day, plan, currency,
               CAST(sum(events) AS BIGINT) AS n_events, CAST(sum(quantity) AS DECIMAL(20, 4)) AS qty,
               CAST(sum(amount) AS DECIMAL(28, 10)) AS charge
        FROM {charges} GROUP BY ALL HAVING sum(quantity) <> 0""")
    lost = duckdb.execute(f"SELECT (SELECT sum(amount) FROM {charges}) = (SELECT sum(charge) FROM lines)").fetchone()[0]
    assert lost, "the lines at ten places are not the ledger"
    duckdb.execute(f"COPY (SELECT *, '{PERIOD}' AS billing_period FROM lines) TO '{out}/rated' ({shape})")


def invoice(program, project, out):
    """The product's own invoice lines."""
    query = "SELECT customer_id, item, currency, amount, billed FROM invoice_lines"
    billed = out / "invoice.csv"
    with open(billed, "w") as file:
        subprocess.run([program, "sql", "-C", project, "--format", "csv", "-c", query], check=True, stdout=file)
    columns = "{'customer': 'VARCHAR', 'meter': 'VARCHAR', 'currency': 'VARCHAR', 'charge': 'DECIMAL(28, 10)', 'amount': 'DECIMAL(18, 2)'}"
    duckdb.execute(f"""COPY (
        SELECT i.customer, i.meter, i.currency, l.qty, i.charge, i.amount, '{PERIOD}' AS billing_period
        FROM read_csv('{billed}', header = true, columns = {columns}) i
        JOIN (SELECT customer, meter, currency, CAST(sum(qty) AS DECIMAL(20, 4)) AS qty FROM lines GROUP BY ALL) l
        USING (customer, meter, currency))
        TO '{out}/invoice' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARTITION_BY (billing_period), OVERWRITE_OR_IGNORE)""")
    billed.unlink()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=pathlib.Path, required=True)
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--ratemill", default=HERE.parent.parent / "target" / "release" / "ratemill")
    arguments.add_argument("--work", type=pathlib.Path, help="new folder for the project and its lake; by default one that is removed")
    given = arguments.parse_args()
    temporary = None if given.work else tempfile.mkdtemp(prefix="ratemill-r1-")
    work = given.work or pathlib.Path(temporary) / "project"
    shutil.copytree(HERE / "project", work)
    for lines in ("rated", "invoice"):
        shutil.rmtree(given.out / lines, ignore_errors=True)
    given.out.mkdir(parents=True, exist_ok=True)
    convert_rate_card(given.data / "ratecard", work)
    program = [given.ratemill, "rate", "-C", work, "--usage", given.data / "parquet", "--as", "usage", "--close", "--format", "json"]
    started = time.perf_counter()
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    seconds = round(time.perf_counter() - started, 4)
    project_lines(work / "lake", given.out)
    invoice(given.ratemill, work, given.out)
    if temporary:
        shutil.rmtree(temporary)
    print(json.dumps({"runs": [seconds]}), flush=True)


if __name__ == "__main__":
    main()
