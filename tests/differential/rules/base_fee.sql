-- Base fees in proportion to the time that each term of a contract had in the month; reads no usage.
CREATE MATERIALIZED VIEW base_fee
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       c.contract_id,
       c.plan,
       c.valid_from                                                                    AS term_from,
       'Base fee by time'                                                              AS item,
       prorate(c.base_fee, c.valid_from, c.valid_to, w.window_start, w.window_end)     AS amount,
       c.base_fee                                                                      AS unit_price,
       c.currency
FROM billing_window w
JOIN contracts c ON c.valid_from < w.window_end AND (c.valid_to IS NULL OR c.valid_to > w.window_start)
