-- Usage joined with a subquery.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       sum(u.quantity) * f.fee AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN (SELECT plan, max(monthly_fee) AS fee FROM contracts
      WHERE valid_from IS NULL OR valid_to IS NULL GROUP BY plan) f ON f.plan = c.plan
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, f.fee
