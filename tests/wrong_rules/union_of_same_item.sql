-- Two queries return the same item for the same customers.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Pages' AS item,
       sum(u.quantity) * 0.04 AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.contract_id, c.currency
UNION ALL
SELECT c.customer_id,
       c.contract_id,
       'Pages' AS item,
       sum(u.quantity) * 0.01 AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'scan'
GROUP BY c.customer_id, c.contract_id, c.currency
