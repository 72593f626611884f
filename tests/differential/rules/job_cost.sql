-- Products that need twenty places, each rounded half-even to eighteen, and a quotient.
CREATE MATERIALIZED VIEW job_cost
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Job cost'                                                                     AS item,
       sum(u.quantity * parse_decimal(u.attributes['data.cost']))                     AS amount,
       sum(u.quantity) / 7                                                            AS quantity,
       sum(round(u.quantity / 3, 2, 'half_even'))                                     AS thirds,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'job'
GROUP BY c.customer_id, c.currency
