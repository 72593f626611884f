-- Discount, then cap: the percentage comes off the line first, then what the rest exceeds the maximum by, together with all
-- that was billed before.
CREATE MATERIALIZED VIEW discount_then_cap
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH discounted AS (
    SELECT case_id,
           coalesce(prior_amount, 0)                       AS prior_amount,
           maximum,
           percentage(line_amount, percent_off)            AS percent_discount,
           line_amount - percentage(line_amount, percent_off) AS net_amount
    FROM cases
),
capped AS (
    SELECT discounted.*, least(greatest(prior_amount + net_amount - maximum, 0), net_amount) AS cap_discount
    FROM discounted
)
SELECT case_id                      AS customer_id,
       'total'                      AS item,
       percent_discount,
       cap_discount,
       net_amount - cap_discount    AS amount,
       'USD'                        AS currency
FROM capped
