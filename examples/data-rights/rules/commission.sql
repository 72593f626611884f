-- What the society keeps: all fees of a work without what is paid to the holders. A rule over both rules, so that the three
-- always add up to nothing.
CREATE MATERIALIZED VIEW commission
WITH (window = 'month', grace = '5 days', effective_from = '2025-06-01')
AS
WITH movements AS (
    SELECT f.work, f.currency, f.amount FROM licence_fees f
    UNION ALL
    SELECT r.work, r.currency, r.amount FROM royalties r
)
SELECT 'society'                 AS customer_id,
       'Commission ' || m.work   AS item,
       -sum(m.amount)            AS amount,
       m.currency,
       m.work
FROM movements m
GROUP BY m.work, m.currency
