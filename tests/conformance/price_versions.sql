-- Prices that change within the period: an event belongs to the last version that is in force at its time;
-- each version prices the sum of its events by its own model.
CREATE MATERIALIZED VIEW price_versions
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH in_force AS (
    SELECT v.case_id, v.position, v.starts_at,
           lead(v.starts_at) OVER (PARTITION BY v.case_id ORDER BY v.position) AS ends_at
    FROM versions v
),
used AS (
    SELECT f.case_id, f.position, coalesce(sum(e.units), 0) AS units
    FROM in_force f
    LEFT JOIN events e ON e.case_id = f.case_id
                      AND (f.starts_at IS NULL OR e.at >= f.starts_at)
                      AND (f.ends_at IS NULL OR e.at < f.ends_at)
    GROUP BY f.case_id, f.position
),
priced AS (
    SELECT u.case_id, u.position,
           CASE v.model
               WHEN 'per_unit'   THEN CASE WHEN coalesce(v.free_units, 0) = 0 THEN u.units ELSE overage(u.units, v.free_units) END * v.price
               WHEN 'graduated'  THEN graduated(u.units, t.tiers, coalesce(v.flat_on_zero, FALSE))
               WHEN 'volume'     THEN volume(u.units, t.tiers, coalesce(v.flat_on_zero, FALSE))
               WHEN 'package'    THEN package(u.units, v.package_size, v.package_price, coalesce(v.free_units, 0),
                                         coalesce(v.rounding, 'up'))
               WHEN 'dynamic'    THEN u.units * v.multiplier
               WHEN 'fixed'      THEN v.fee
               WHEN 'demand'     THEN at_least(u.units, v.minimum_kw) * v.price_per_kw
           END AS amount
    FROM used u
    JOIN versions v ON v.case_id = u.case_id AND v.position = u.position
    LEFT JOIN tiers t ON t.case_id = u.case_id AND t.version = u.position
)
SELECT p.case_id                                              AS customer_id,
       'total'                                                AS item,
       CASE WHEN count(p.amount) = count(*) THEN sum(p.amount) END AS amount,
       'USD'                                                  AS currency,
       CAST(NULL AS BIGINT)                                   AS position,
       CAST(NULL AS DECIMAL(38, 18))                          AS version_amounts
FROM priced p
GROUP BY p.case_id
UNION ALL
SELECT p.case_id, 'part', p.amount, 'USD', p.position, p.amount AS version_amounts
FROM priced p
