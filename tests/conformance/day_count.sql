-- Days of a period. calendar: difference of the written dates, the end excluded. fixed_month: as if every month had
-- month_days days. elapsed_local_ceil: time elapsed on the local clock, a part of a day counting as a day, and the day
-- that begins with a period's end at local midnight too.
CREATE MATERIALIZED VIEW day_count
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH dates AS (
    SELECT cases.*, CAST(left(from_text, 10) AS DATE) AS from_date, CAST(left(to_text, 10) AS DATE) AS to_date
    FROM cases
),
counted AS (
    SELECT case_id,
           month_days,
           CASE method
               WHEN 'calendar'           THEN days_between(from_date, to_date)
               WHEN 'fixed_month'        THEN days_between(from_date, to_date, month_days)
               WHEN 'elapsed_local_ceil' THEN elapsed_days(from_time, to_time, coalesce(timezone, 'UTC'))
           END AS days
    FROM dates
)
SELECT case_id           AS customer_id,
       'total'           AS item,
       days,
       days / month_days AS fraction,
       0                 AS amount,
       'USD'             AS currency
FROM counted
