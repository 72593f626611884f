-- What is missing to the minimum spend of the plan: a rule over the rules that charge usage.
-- Begins with the contracts, so that one without any usage pays the whole minimum.
CREATE MATERIALIZED VIEW minimum_spend
WITH (window = 'month', timezone = 'Europe/Madrid', grace = '3 days', effective_from = '2025-10-01', fan_out = 'allowed')
AS
WITH holders AS (
    SELECT DISTINCT c.customer_id, c.contract_id, c.plan, c.currency
    FROM billing_window w
    CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
),
charged AS (
    SELECT k.contract_id, k.currency, k.amount FROM calls k
    UNION ALL
    SELECT s.contract_id, s.currency, s.amount FROM sms s
    UNION ALL
    SELECT d.contract_id, d.currency, d.amount FROM mobile_data d
),
spent AS (
    SELECT g.contract_id, g.currency, sum(g.amount) AS amount FROM charged g GROUP BY g.contract_id, g.currency
)
SELECT h.customer_id,
       h.contract_id,
       'Minimum spend'                        AS item,
       overage(p.minimum_spend, s.amount)     AS amount,
       h.currency
FROM holders h
JOIN plans p      ON p.plan = h.plan
LEFT JOIN spent s ON s.contract_id = h.contract_id AND s.currency = h.currency
WHERE overage(p.minimum_spend, s.amount) > 0
