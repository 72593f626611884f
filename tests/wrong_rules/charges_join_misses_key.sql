-- A join that meets a charge of another rule several times: contracts have one row for each subject and time.
CREATE MATERIALIZED VIEW charges_join_misses_key
WITH (window = 'day', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT d.customer_id, 'Surcharge' AS item, sum(d.amount) * 0.1 AS amount, d.currency
FROM daily_pages d
CROSS JOIN billing_window w
JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON c.customer_id = d.customer_id
GROUP BY d.customer_id, d.currency
