-- The period of a contract, but the contract is no column.
CREATE MATERIALIZED VIEW pages
WITH (window = 'billing_period', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       'Pages' AS item,
       sum(u.quantity) * 0.04 AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.currency
