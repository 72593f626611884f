-- Usage joined with charges cannot be checked.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT d.customer_id,
       d.contract_id,
       'Minimum' AS item,
       at_least(sum(d.amount), 20.00) - sum(d.amount) AS amount,
       d.currency
FROM usage u
JOIN daily_pages d ON d.customer_id = u.subject
WHERE u.meter = 'printed_page'
GROUP BY d.customer_id, d.contract_id, d.currency
