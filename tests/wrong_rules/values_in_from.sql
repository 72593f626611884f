-- Rows that belong into a reference table.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       sum(u.quantity) * v.price AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN (VALUES ('standard', 0.04)) AS v(plan, price) ON v.plan = c.plan
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, v.price
