-- Graduated percentage: as graduated, each tier taking a percentage of the part of the amount that falls into it,
-- (min(amount, up_to) - low) * rate / 100 + flat fee. `unit_price` of a tier is its rate in percent.
CREATE MATERIALIZED VIEW graduated_percentage
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
       graduated_percentage(coalesce(c.prior_units, 0) + c.units, p.tiers, coalesce(c.flat_on_zero, FALSE))
           - coalesce(graduated_percentage(c.prior_units, p.tiers, coalesce(c.flat_on_zero, FALSE)), 0) AS amount,
       CAST(NULL AS DECIMAL(38, 18))    AS tier_units,
       CAST(NULL AS DECIMAL(38, 18))    AS tier_amounts,
       'USD'                            AS currency
FROM cases c
JOIN prices p ON p.case_id = c.case_id
UNION ALL
SELECT case_id,
       'part',
       step['tier'],
       0,
       step['quantity'],
       percentage(step['quantity'], step['unit_price'], step['flat_fee']),
       'USD'
FROM steps
