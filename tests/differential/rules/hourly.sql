-- Windows of fixed length, most of them without usage.
CREATE MATERIALIZED VIEW hourly
WITH (window = 'hour', effective_from = '2026-03-17', effective_to = '2026-03-18')
AS
SELECT c.customer_id,
       'Energy of the hour'         AS item,
       sum(u.quantity)              AS quantity,
       sum(u.quantity) * 0.2718281  AS amount,
       min(u.quantity)              AS smallest,
       max(u.quantity)              AS largest,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'energy'
GROUP BY c.customer_id, c.currency
