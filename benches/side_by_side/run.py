#!/usr/bin/env python3
"""Runs a workload with Ratemill and writes what comes of it as Parquet, for comparison with other engines line by line.

  run.py --workload r1|r2|r3 --data DIR --out DIR [--ratemill PROGRAM] [--work DIR]

  r1  rates a month: Parquet files in, dedup, charges in the ledger (`ratemill rate`)
  r2  ingest: NDJSON CloudEvents to deduplicated usage in the lake, no rules (`ratemill rate`)
  r3  streaming: the live engine takes the NDJSON files one after the other from a drop, folds them into the open month, and
      closes it when the watermark passes its end (`ratemill run`)

DIR has `parquet/*.parquet` or `ndjson/*.ndjson` and `ratecard/*.parquet` (contracts, tiers, tou_hours, tou_rates). OUT gets
`rated/` (lines by customer, meter and day) and `invoice/` (by customer, meter and currency, rounded half-even to the cent), or
`events/`. The last line of output is {"runs": [seconds]}: the whole command, from its start to its end, for r3 from the start of
the engine until the ledger has the month. Needs Python with the package duckdb.
"""
import argparse, glob, json, os, pathlib, shutil, signal, subprocess, tempfile, time

import duckdb

HERE = pathlib.Path(__file__).parent
PERIOD = "2026-10"
REFERENCE = {
    "contracts": "SELECT customer AS subject, plan, currency, valid_from, valid_to FROM card ORDER BY customer, valid_from",
    "prices": "SELECT plan, meter, hi AS up_to, unit_price, flat_fee FROM card ORDER BY plan, meter, tier",
    "tou_hours": "SELECT meter, hour, band FROM card ORDER BY meter, hour",
    "tou_rates": "SELECT plan, band, adder FROM card ORDER BY plan, band",
}
SHAPE = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1"
# Weeks later: with it the watermark has passed the end of October and the grace.
LAST = '{"specversion":"1.0","id":"end","source":"end","type":"end","subject":"end","time":"2026-11-20T00:00:00Z","data":{"value":0}}\n'


def convert_rate_card(card, project):
    """The rate card as reference tables."""
    for table, query in REFERENCE.items():
        source = card / f"{'tiers' if table == 'prices' else table}.parquet"
        rows = query.replace("card", f"read_parquet('{source}')", 1)
        duckdb.execute(f"COPY ({rows}) TO '{project}/reference/{table}.csv' (FORMAT csv, HEADER)")


def project_lines(lake, out):
    """The ledger, net, in the columns that the comparison reads; decimals stay decimals."""
    charges = f"read_parquet('{lake}/charges/*/*.parquet', hive_partitioning = true)"
    duckdb.execute("SET TimeZone = 'UTC'")
    duckdb.execute(f"""CREATE TABLE lines AS
        SELECT customer_id AS customer, item AS meter, CAST(day AS DATE) AS day, plan, currency,
               CAST(sum(events) AS BIGINT) AS n_events, CAST(sum(quantity) AS DECIMAL(20, 4)) AS qty,
               CAST(sum(amount) AS DECIMAL(28, 10)) AS charge
        FROM {charges} GROUP BY ALL HAVING sum(quantity) <> 0""")
    lost = duckdb.execute(f"SELECT (SELECT sum(amount) FROM {charges}) = (SELECT sum(charge) FROM lines)").fetchone()[0]
    assert lost, "the lines at ten places are not the ledger"
    duckdb.execute(f"COPY (SELECT *, '{PERIOD}' AS billing_period FROM lines) TO '{out}/rated' ({SHAPE}, PARTITION_BY (billing_period), OVERWRITE_OR_IGNORE)")


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
        TO '{out}/invoice' ({SHAPE}, PARTITION_BY (billing_period), OVERWRITE_OR_IGNORE)""")
    billed.unlink()


def events(lake, out):
    """Usage in the columns that the comparison reads."""
    (out / "events").mkdir(parents=True)
    duckdb.execute("SET TimeZone = 'UTC'")
    duckdb.execute(f"""COPY (
        SELECT source, id, subject AS customer, meter, CAST(time AS TIMESTAMP) AS ts, CAST(quantity AS DECIMAL(18, 4)) AS value,
               attributes['data.unit'] AS unit, attributes['data.region'] AS region, attributes['data.channel'] AS channel
        FROM read_parquet('{lake}/usage/*/*.parquet', hive_partitioning = true)) TO '{out}/events/part.parquet' ({SHAPE})""")


def rate(given, work, usage, arguments):
    program = [given.ratemill, "rate", "-C", work, "--usage", usage, "--format", "json", *arguments]
    started = time.perf_counter()
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def put(file, drop):
    """A whole file at once: a second name for it where the disk is the same, else a copy under another name till it is whole."""
    name = drop / pathlib.Path(file).name
    try:
        os.link(file, name)
    except OSError:
        shutil.copy(file, f"{name}.tmp")
        os.rename(f"{name}.tmp", name)


def stream(given, work):
    """The live engine, until the ledger has the month."""
    shutil.copy(HERE / "stream.toml", work / "ratemill.toml")
    drop = work / "ndjson"
    drop.mkdir()
    log = open(work / "engine.stderr", "w")
    started = time.perf_counter()
    engine = subprocess.Popen([given.ratemill, "run", "-C", work, "--log", "info"], stdout=subprocess.DEVNULL, stderr=log)
    try:
        for file in sorted(glob.glob(f"{given.data}/ndjson/*.ndjson")):
            put(file, drop)
        (drop / "zzz-last.ndjson").write_text(LAST)
        while not glob.glob(f"{work}/lake/charges/posting_period={PERIOD}/*.parquet"):
            assert engine.poll() is None, (work / "engine.stderr").read_text()[-2000:]
            time.sleep(0.02)
        # The ledger has it once the epoch is complete.
        known = len(glob.glob(f"{work}/lake/epochs/*.manifest.json"))
        while len(glob.glob(f"{work}/lake/epochs/*.done.json")) < known:
            time.sleep(0.02)
        seconds = time.perf_counter() - started
    finally:
        engine.send_signal(signal.SIGTERM)
        engine.wait()
    return seconds


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workload", choices=["r1", "r2", "r3"], default="r1")
    arguments.add_argument("--data", type=pathlib.Path, required=True)
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--ratemill", default=HERE.parent.parent / "target" / "release" / "ratemill")
    arguments.add_argument("--work", type=pathlib.Path, help="new folder for the project and its lake; by default one that is removed")
    given = arguments.parse_args()
    temporary = None if given.work else tempfile.mkdtemp(prefix="ratemill-")
    work = given.work or pathlib.Path(temporary) / "project"
    shutil.copytree(HERE / "project", work)
    for lines in ("rated", "invoice", "events"):
        shutil.rmtree(given.out / lines, ignore_errors=True)
    given.out.mkdir(parents=True, exist_ok=True)
    convert_rate_card(given.data / "ratecard", work)
    if given.workload == "r1":
        seconds = rate(given, work, given.data / "parquet", ["--as", "usage", "--close"])
    elif given.workload == "r2":
        shutil.rmtree(work / "rules")
        (work / "rules").mkdir()
        seconds = rate(given, work, given.data / "ndjson", [])
    else:
        seconds = stream(given, work)
    if given.workload == "r2":
        events(work / "lake", given.out)
    else:
        project_lines(work / "lake", given.out)
        invoice(given.ratemill, work, given.out)
    if temporary:
        shutil.rmtree(temporary)
    print(json.dumps({"runs": [round(seconds, 4)]}), flush=True)


if __name__ == "__main__":
    main()
