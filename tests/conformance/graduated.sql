-- Graduated: each tier prices the units that fall into it, (min(units, up_to) - low) * unit price + flat fee, summed over
-- the tiers entered. Units billed earlier in the period fill the tiers first: the charge is the amount of all units less the
-- amount of the earlier ones. tier_units and tier_amounts show the tiers that all units together entered.
CREATE MATERIALIZED VIEW graduated
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH steps AS (
    SELECT c.case_id,
           unnest(tier_breakdown(coalesce(c.prior_units, 0) + c.units, p.tiers, coalesce(c.flat_on_zero, FALSE))) AS step
    FROM cases c
    JOIN prices p ON p.case_id = c.case_id
)
SELECT c.case_id                        AS customer_id,
       'total'                          AS item,
       CAST(NULL AS BIGINT)             AS position,
       graduated(coalesce(c.prior_units, 0) + c.units, p.tiers, coalesce(c.flat_on_zero, FALSE))
           - coalesce(graduated(c.prior_units, p.tiers, coalesce(c.flat_on_zero, FALSE)), 0) AS amount,
       CAST(NULL AS DECIMAL(38, 18))    AS tier_units,
       CAST(NULL AS DECIMAL(38, 18))    AS tier_amounts,
       'USD'                            AS currency
FROM cases c
JOIN prices p ON p.case_id = c.case_id
UNION ALL
SELECT case_id, 'part', step['tier'], 0, step['quantity'], step['amount'], 'USD'
FROM steps
