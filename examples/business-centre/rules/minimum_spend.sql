-- What is missing to the minimum spend of the plan: a rule over the other rules.
-- Begins with the contracts, so that a month without any charge is topped up, too.
CREATE MATERIALIZED VIEW minimum_spend
WITH (window = 'month', timezone = 'Europe/London', grace = '1 day', effective_from = '2026-09-01', fan_out = 'allowed')
AS
WITH charged AS (
    SELECT f.contract_id, f.currency, f.amount FROM office_fees f
    UNION ALL
    SELECT r.contract_id, r.currency, r.amount FROM receptionist_calls r
    UNION ALL
    SELECT p.contract_id, p.currency, p.amount FROM printed_pages p
    UNION ALL
    SELECT m.contract_id, m.currency, m.amount FROM meeting_rooms m
),
spent AS (
    SELECT g.contract_id, g.currency, sum(g.amount) AS amount FROM charged g GROUP BY g.contract_id, g.currency
)
SELECT c.customer_id,
       c.contract_id,
       'Minimum spend'                        AS item,
       overage(n.minimum_spend, s.amount)     AS amount,
       c.currency,
       c.plan
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
JOIN minimums n   ON n.plan = c.plan
LEFT JOIN spent s ON s.contract_id = c.contract_id AND s.currency = c.currency
WHERE overage(n.minimum_spend, s.amount) > 0
