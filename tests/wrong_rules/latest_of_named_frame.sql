-- A frame that a named window has.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       'Pages' AS item,
       latest(u.quantity, u.time) OVER recent AS amount,
       c.currency,
       u.id AS event
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WINDOW recent AS (PARTITION BY u.subject ORDER BY u.time, u.id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
