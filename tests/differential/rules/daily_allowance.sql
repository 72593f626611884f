-- Twenty units a day are free; 29 March has 23 hours in London.
CREATE MATERIALIZED VIEW daily_allowance
WITH (window = 'day', timezone = 'Europe/London', effective_from = '2026-03-25', effective_to = '2026-04-03')
AS
SELECT c.customer_id,
       'Above the allowance'                               AS item,
       greatest(sum(u.quantity) - 20, 0.0)                 AS quantity,
       greatest(sum(u.quantity) - 20, 0.0) * 1.234567      AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
GROUP BY c.customer_id, c.currency
