CREATE MATERIALIZED VIEW days
WITH (window = 'day', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2040-08-01')
AS
SELECT c.customer_id, 'Lines' AS item, count(DISTINCT u.id) AS quantity, count(DISTINCT u.id) * 0.05 AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.currency
