-- The currency of a contract can change within the window.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
WITH spent AS (SELECT d.contract_id, sum(d.amount) AS amount FROM daily_pages d GROUP BY d.contract_id)
SELECT c.customer_id,
       'Minimum' AS item,
       overage(50, s.amount) AS amount,
       c.currency,
       c.contract_id
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
JOIN spent s ON s.contract_id = c.contract_id
