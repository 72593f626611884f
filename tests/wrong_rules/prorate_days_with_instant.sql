-- A number of days is a number.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       c.subject,
       'Fee' AS item,
       prorate_days(c.monthly_fee, c.valid_from, 30) AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
