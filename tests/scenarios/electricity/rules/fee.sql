CREATE MATERIALIZED VIEW fee
WITH (window = 'month', timezone = 'UTC', grace = '1 day', effective_from = '2040-09-01')
AS
SELECT c.customer_id, 'Fee' AS item, CASE WHEN count(u.id) = 0 THEN 1 ELSE 3 END AS amount, c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
LEFT JOIN usage u ON u.subject = c.subject
GROUP BY c.customer_id, c.currency
