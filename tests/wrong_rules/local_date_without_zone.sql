-- The time zone is missing.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       c.subject,
       'Fee' AS item,
       days_between(local_date(w.window_start), DATE '2026-02-01') AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
