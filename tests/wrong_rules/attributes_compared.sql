-- Two texts that are numbers.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       'Pages' AS item,
       sum(u.quantity) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page' AND u.attributes['data.pages'] <= u.attributes['data.included']
GROUP BY c.customer_id, c.currency
