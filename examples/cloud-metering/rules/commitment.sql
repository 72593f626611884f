-- The commitment's true-up: what is missing to the spend that the contract commits to in a billing period.
-- A rule over rules, in the same billing period. A first period that is shorter than a month commits by its days.
CREATE MATERIALIZED VIEW commitment
WITH (window = 'billing_period', grace = '6 hours', effective_from = '2025-01-01', fan_out = 'allowed')
AS
WITH periods AS (
    SELECT DISTINCT c.customer_id, c.contract_id, c.currency, c.anchor_day,
           local_date(w.window_start, c.timezone) AS first_day,
           local_date(w.window_end, c.timezone)   AS next_day
    FROM billing_window w
    CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
),
committed AS (
    SELECT p.customer_id, p.contract_id, p.currency,
           prorate_days(m.amount, days_between(p.first_day, p.next_day),
                        days_between(add_months(p.next_day, -1, p.anchor_day), p.next_day)) AS amount
    FROM periods p
    JOIN commitments m ON m.contract_id = p.contract_id
),
charged AS (
    SELECT t.contract_id, t.currency, t.amount FROM tokens t
    UNION ALL
    SELECT s.contract_id, s.currency, s.amount FROM storage s
    UNION ALL
    SELECT b.contract_id, b.currency, b.amount FROM bandwidth b
),
spent AS (
    SELECT g.contract_id, g.currency, sum(g.amount) AS amount FROM charged g GROUP BY g.contract_id, g.currency
)
SELECT m.customer_id,
       m.contract_id,
       'Commitment shortfall'          AS item,
       overage(m.amount, s.amount)     AS amount,
       m.currency
FROM committed m
LEFT JOIN spent s ON s.contract_id = m.contract_id AND s.currency = m.currency
WHERE overage(m.amount, s.amount) > 0
