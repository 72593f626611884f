-- Stacked discounts: percentages first, each on what is left, then fixed amounts; what is left is never below zero.
--   left = max(0, amount * (1 - first percent / 100) * (1 - second percent / 100) * ... - fixed amounts)
--   discount = amount - left
-- Up to four percentages, side by side. A fifth makes the amount null, which is refused rather than billed.
CREATE MATERIALIZED VIEW discount_stack
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH percentages AS (
    SELECT d.case_id, 1 - d.value / 100 AS kept, row_number() OVER (PARTITION BY d.case_id ORDER BY d.position) AS place
    FROM discounts d
    WHERE d.kind = 'percent'
),
percent_off AS (
    SELECT p.case_id, count(*) AS percentages,
           coalesce(max(CASE WHEN p.place = 1 THEN p.kept END), 1)
         * coalesce(max(CASE WHEN p.place = 2 THEN p.kept END), 1)
         * coalesce(max(CASE WHEN p.place = 3 THEN p.kept END), 1)
         * coalesce(max(CASE WHEN p.place = 4 THEN p.kept END), 1) AS kept
    FROM percentages p
    GROUP BY p.case_id
),
fixed_off AS (
    SELECT d.case_id, sum(d.value) AS taken_off
    FROM discounts d
    WHERE d.kind = 'fixed'
    GROUP BY d.case_id
),
discounted AS (
    SELECT i.case_id, i.price,
           CASE WHEN coalesce(p.percentages, 0) <= 4
                THEN at_least(i.price * coalesce(p.kept, 1) - coalesce(f.taken_off, 0), 0) END AS net
    FROM invoice i
    LEFT JOIN percent_off p ON p.case_id = i.case_id
    LEFT JOIN fixed_off f ON f.case_id = i.case_id
)
SELECT d.case_id       AS customer_id,
       'total'         AS item,
       d.net           AS amount,
       'USD'           AS currency,
       d.price - d.net AS discount
FROM discounted d
