-- A sound rule that others read: pages of a day.
CREATE MATERIALIZED VIEW daily_pages
WITH (window = 'day', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id, c.contract_id, c.plan, 'Pages of a day' AS item, sum(u.quantity) AS quantity, sum(u.quantity) * 0.04 AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.contract_id, c.plan, c.currency
