-- Grouped: the base model prices the units of every group by itself (tiers, packages and free units start anew in each),
-- and the charge is the sum.
CREATE MATERIALIZED VIEW grouped
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH quantities AS (
    SELECT c.case_id,
           g.name,
           coalesce(g.units, (SELECT sum(a.amount) FROM event_amounts a WHERE a.case_id = g.case_id AND a.name = g.name)) AS units,
           g.peak_kw,
           c.model,
           c.price,
           c.price_per_kw,
           coalesce(c.free_units, 0)       AS free_units,
           c.package_size,
           coalesce(c.rounding, 'up')      AS rounding,
           c.multiplier,
           coalesce(c.flat_on_zero, FALSE) AS flat_on_zero,
           p.tiers
    FROM cases c
    JOIN group_usage g ON g.case_id = c.case_id
    LEFT JOIN prices p ON p.case_id = c.case_id
),
priced AS (
    SELECT case_id,
           name,
           CASE model
               WHEN 'per_unit' THEN CASE WHEN free_units = 0 THEN units ELSE overage(units, free_units) END * price
               WHEN 'graduated' THEN graduated(units, tiers, flat_on_zero)
               WHEN 'graduated_percentage' THEN graduated_percentage(units, tiers, flat_on_zero)
               WHEN 'volume' THEN volume(units, tiers, flat_on_zero)
               WHEN 'package' THEN package(units, package_size, price, free_units, rounding)
               WHEN 'dynamic' THEN coalesce(units, 0) * multiplier
               WHEN 'demand' THEN peak_kw * price_per_kw
               WHEN 'fixed' THEN price
           END AS group_amount
    FROM quantities
)
SELECT case_id                       AS customer_id,
       'total'                       AS item,
       CAST(NULL AS VARCHAR)         AS name,
       -- Null, and with it an error, when a group has no price.
       CASE WHEN count(group_amount) = count(*) THEN sum(group_amount) END AS amount,
       CAST(NULL AS DECIMAL(38, 18)) AS amounts,
       'USD'                         AS currency
FROM priced
GROUP BY case_id
UNION ALL
SELECT case_id, 'part', name, 0, group_amount, 'USD'
FROM priced
