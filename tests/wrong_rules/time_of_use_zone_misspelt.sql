-- A time zone with a nearby name.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       sum(time_of_use(u.time, u."end", u.quantity, 'Europe/Londn', t.windows, NULL)) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN tariffs t ON t.name = c.plan
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency
