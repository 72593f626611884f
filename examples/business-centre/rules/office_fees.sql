-- Offices at their monthly fee, in proportion to the days that the tenant had them.
-- Reads no usage: a month without any is charged all the same.
CREATE MATERIALIZED VIEW office_fees
WITH (window = 'month', timezone = 'Europe/London', grace = '1 day', effective_from = '2026-09-01')
AS
SELECT o.customer_id,
       c.contract_id,
       'Office ' || o.office                                                             AS item,
       prorate(f.monthly_fee, o.valid_from, o.valid_to, w.window_start, w.window_end)    AS amount,
       c.currency,
       f.monthly_fee                                                                     AS unit_price,
       c.plan
FROM billing_window w
JOIN offices o   ON o.valid_from < w.window_end AND (o.valid_to IS NULL OR o.valid_to > w.window_start)
JOIN contracts c ON c.subject = o.customer_id
                AND c.valid_from < w.window_end AND (c.valid_to IS NULL OR c.valid_to > w.window_start)
JOIN fees f      ON f.plan = c.plan AND f.size = o.size
