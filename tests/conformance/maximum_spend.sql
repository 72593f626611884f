-- Maximum spend: lines are billed in order until the maximum is reached. Of each line, what exceeds the maximum together with
-- all that was billed before is taken off, at most the line itself.
CREATE MATERIALIZED VIEW maximum_spend
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH running AS (
    SELECT c.case_id,
           c.maximum,
           l.position,
           l.amount,
           coalesce(c.prior_amount, 0) + sum(l.amount) OVER (PARTITION BY c.case_id ORDER BY l.position) AS billed_with_line
    FROM cases c
    LEFT JOIN invoice_items l ON l.case_id = c.case_id
),
capped AS (
    SELECT case_id, position, amount, least(greatest(billed_with_line - maximum, 0), amount) AS discount
    FROM running
)
SELECT case_id                              AS customer_id,
       'total'                              AS item,
       CAST(NULL AS BIGINT)                 AS position,
       coalesce(sum(amount - discount), 0)  AS amount,
       CAST(NULL AS DECIMAL(38, 18))        AS discounts,
       CAST(NULL AS DECIMAL(38, 18))        AS nets,
       'USD'                                AS currency
FROM capped
GROUP BY case_id
UNION ALL
SELECT case_id, 'part', position, 0, discount, amount - discount, 'USD'
FROM capped
WHERE position IS NOT NULL
