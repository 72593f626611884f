-- A sum divided by use: each customer's share of all storage, by a scalar subquery.
CREATE MATERIALIZED VIEW shared_cost
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Share of the platform'                                                                          AS item,
       sum(u.quantity)                                                                                  AS quantity,
       10000.01 * sum(u.quantity) / (SELECT sum(t.quantity) FROM usage t WHERE t.meter = 'storage')     AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'storage'
GROUP BY c.customer_id, c.currency
