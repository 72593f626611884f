-- The middle of the last ten events.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       'Pages' AS item,
       percentile(u.quantity, 50) OVER (PARTITION BY u.subject ORDER BY u.time, u.id ROWS 9 PRECEDING) AS amount,
       c.currency,
       u.id AS event
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
