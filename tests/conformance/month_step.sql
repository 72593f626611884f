-- The next monthly date: the anchor day, cut to the length of the month.
CREATE MATERIALIZED VIEW month_step
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT c.case_id                                AS customer_id,
       'total'                                  AS item,
       0                                        AS amount,
       'USD'                                    AS currency,
       add_months(c.from_date, 1, c.anchor_day) AS "to"
FROM contract c
