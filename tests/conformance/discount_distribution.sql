-- A discount spread over items in proportion to their prices. Shares are cut to cents; the cents that are then missing
-- go to the largest remainders.
CREATE MATERIALIZED VIEW discount_distribution
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH shares AS (
    SELECT i.case_id, i.position, i.price, d.discount, d.places,
           d.discount * i.price / sum(i.price) OVER (PARTITION BY i.case_id) AS share
    FROM discounts d
    JOIN items i ON i.case_id = d.case_id
),
cut AS (
    SELECT s.case_id, s.position, s.price,
           floor(s.share, s.places)                                                              AS lower,
           ceil(s.share, s.places)                                                               AS upper,
           s.discount - sum(floor(s.share, s.places)) OVER (PARTITION BY s.case_id)              AS missing,
           row_number() OVER (PARTITION BY s.case_id ORDER BY s.share - floor(s.share, s.places) DESC, s.position) AS place
    FROM shares s
),
-- A share that is not whole can rise by one cent: as many do, by place, as cents are missing.
nets AS (
    SELECT c.case_id, c.position,
           c.price - CASE WHEN sum(c.upper - c.lower) OVER (PARTITION BY c.case_id ORDER BY c.place) <= c.missing
                          THEN c.upper ELSE c.lower END AS net
    FROM cut c
)
SELECT n.case_id                     AS customer_id,
       'total'                       AS item,
       sum(n.net)                    AS amount,
       'USD'                         AS currency,
       CAST(NULL AS BIGINT)          AS position,
       CAST(NULL AS DECIMAL(38, 18)) AS nets
FROM nets n
GROUP BY n.case_id
UNION ALL
SELECT n.case_id, 'part', n.net, 'USD', n.position, n.net AS nets
FROM nets n
