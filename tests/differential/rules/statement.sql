-- Base fee of the contract that is in force as the month begins, and usage, in one rule: UNION ALL.
CREATE MATERIALIZED VIEW statement
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id, c.contract_id, 'Base fee' AS item, 1.0 AS quantity, c.base_fee AS amount, c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
UNION ALL
SELECT c.customer_id, c.contract_id, 'Jobs' AS item, sum(u.quantity) AS quantity, sum(u.quantity) * 0.333333 AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'job'
GROUP BY c.customer_id, c.contract_id, c.currency
