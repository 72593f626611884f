CREATE MATERIALIZED VIEW demand
WITH (window = 'month', timezone = 'UTC', grace = '1 day', effective_from = '2040-09-01')
AS
SELECT q.customer_id, 'Demand' AS item, max(q.kwh) AS quantity, max(q.kwh) * 2 AS amount, q.currency
FROM (
    SELECT c.customer_id, c.currency, time_bucket(u.time, '15 minutes') AS quarter, sum(u.quantity) AS kwh
    FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE u.meter = 'kwh'
    GROUP BY 1, 2, 3
) q
GROUP BY q.customer_id, q.currency
