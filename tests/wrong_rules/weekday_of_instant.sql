-- An instant has no weekday without a zone.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       c.subject,
       'Fee' AS item,
       weekday(w.window_start) AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
