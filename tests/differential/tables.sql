-- The project's files as DuckDB reads them, and what its SQL lacks. The variable `project` names the folder.
-- Sums and products of decimals are exact in DuckDB while their places fit. What needs a quotient is computed in whole
-- units (HUGEINT, 38 digits): a column NAME_e18 is NAME in units of 10^-18.
SET TimeZone = 'UTC';

-- An event counts once, however often it was sent.
CREATE TABLE usage AS
SELECT source,
       id,
       type                                           AS meter,
       subject,
       time,
       CAST(data ->> '$.quantity' AS DECIMAL(18, 6))  AS quantity,
       CAST(data ->> '$.end' AS TIMESTAMPTZ)          AS "end",
       data ->> '$.region'                            AS region,
       CAST(data ->> '$.priority' AS INTEGER)         AS priority,
       data ->> '$.user'                              AS user_name,
       CAST(data ->> '$.cost' AS DECIMAL(18, 14))     AS cost
FROM read_json(
    getvariable('project') || '/usage/*.ndjson',
    format = 'newline_delimited',
    columns = {source: 'VARCHAR', id: 'VARCHAR', type: 'VARCHAR', subject: 'VARCHAR', time: 'TIMESTAMPTZ', data: 'JSON'}
)
QUALIFY row_number() OVER (PARTITION BY source, id) = 1;

CREATE MACRO first_instant(day, zone) AS timezone(zone, CAST(day AS TIMESTAMP));

CREATE TABLE contracts AS
SELECT * REPLACE (first_instant(valid_from, 'Europe/London') AS valid_from, first_instant(valid_to, 'Europe/London') AS valid_to)
FROM read_csv(
    getvariable('project') || '/reference/contracts.csv',
    columns = {
        subject: 'VARCHAR', customer_id: 'VARCHAR', contract_id: 'VARCHAR', plan: 'VARCHAR', currency: 'VARCHAR',
        base_fee: 'DECIMAL(12, 2)', valid_from: 'DATE', valid_to: 'DATE'
    }
);

CREATE TABLE customers AS
FROM read_csv(
    getvariable('project') || '/reference/customers.csv',
    columns = {customer_id: 'VARCHAR', currency: 'VARCHAR', minimum: 'DECIMAL(12, 2)'}
);

CREATE TABLE regions AS
FROM read_csv(getvariable('project') || '/reference/regions.csv', columns = {region: 'VARCHAR', unit_price: 'DECIMAL(12, 6)'});

CREATE TABLE tariffs AS
SELECT * REPLACE (first_instant(valid_from, 'Europe/Berlin') AS valid_from, first_instant(valid_to, 'Europe/Berlin') AS valid_to)
FROM read_csv(
    getvariable('project') || '/reference/tariffs.csv',
    columns = {plan: 'VARCHAR', unit_price: 'DECIMAL(12, 6)', valid_from: 'DATE', valid_to: 'DATE'}
);

-- Tiers as flat rows: low < quantity <= up_to.
CREATE TABLE tiers AS
SELECT plan,
       item,
       lag(up_to, 1, 0) OVER (PARTITION BY plan, item ORDER BY up_to NULLS LAST)  AS low,
       coalesce(up_to, 999999999999)                                             AS up_to,
       unit_price,
       flat_fee
FROM read_csv(
    getvariable('project') || '/reference/prices.csv',
    columns = {plan: 'VARCHAR', item: 'VARCHAR', up_to: 'DECIMAL(18, 6)', unit_price: 'DECIMAL(12, 6)', flat_fee: 'DECIMAL(12, 2)'}
);

-- Usage with the contract of its time.
CREATE VIEW contracted AS
SELECT u.*, c.customer_id, c.contract_id, c.plan, c.currency, c.base_fee
FROM usage u
JOIN contracts c ON c.subject = u.subject AND c.valid_from <= u.time AND (c.valid_to IS NULL OR u.time < c.valid_to);

-- Windows that begin at local midnights, `step` apart, from `first` until before `until`.
CREATE MACRO calendar(first, until, step, zone) AS TABLE
SELECT timezone(zone, local_start) AS window_start, timezone(zone, local_start + step) AS window_end
FROM (SELECT unnest(range(CAST(first AS TIMESTAMP), CAST(until AS TIMESTAMP), step)) AS local_start);

CREATE MACRO months(zone) AS TABLE
FROM calendar('2026-02-01', '2026-05-01', INTERVAL 1 MONTH, zone);

-- Whole numbers of a unit.
CREATE MACRO cents(amount) AS CAST(CAST(amount AS DECIMAL(18, 2)) * 100 AS HUGEINT);
CREATE MACRO millionths(quantity) AS CAST(CAST(quantity AS DECIMAL(24, 6)) * 1000000 AS HUGEINT);
CREATE MACRO microseconds(instant) AS CAST(epoch_us(instant) AS HUGEINT);
CREATE MACRO power_of_ten(exponent) AS CAST('1' || repeat('0', exponent) AS HUGEINT);

-- n ÷ d to a whole number; d is positive, the sign is put aside so that both signs round alike.
CREATE MACRO signed(n, magnitude) AS CASE WHEN n < 0 THEN -magnitude ELSE magnitude END;
CREATE MACRO divide_down(n, d) AS signed(n, abs(n) // d);
CREATE MACRO divide_up(n, d) AS signed(n, abs(n) // d + CASE WHEN abs(n) % d > 0 THEN 1 ELSE 0 END);
CREATE MACRO divide_half_up(n, d) AS signed(n, abs(n) // d + CASE WHEN 2 * (abs(n) % d) >= d THEN 1 ELSE 0 END);
CREATE MACRO divide_half_even(n, d) AS
    signed(n, abs(n) // d + CASE WHEN 2 * (abs(n) % d) > d OR (2 * (abs(n) % d) = d AND (abs(n) // d) % 2 = 1) THEN 1 ELSE 0 END);
