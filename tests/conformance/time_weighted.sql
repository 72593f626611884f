-- Time weighted: the level at the period's opening, plus every change times the share of the period's seconds that were left
-- when it came. A change at the period's end no longer counts. With a unit price, the amount of that quantity.
CREATE MATERIALIZED VIEW time_weighted
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH weighted_units AS (
    -- Unit seconds are added up before they are divided, so that three thirds are one.
    SELECT c.case_id,
           c.price,
           coalesce(c.opening, 0)
               + coalesce(sum(d.delta * seconds_between(greatest(d.changed_at, c.period_start), c.period_end)), 0)
                 / seconds_between(c.period_start, c.period_end) AS units
    FROM cases c
    LEFT JOIN deltas d ON d.case_id = c.case_id AND d.changed_at < c.period_end
    GROUP BY c.case_id, c.price, c.opening, c.period_start, c.period_end
)
SELECT case_id                      AS customer_id,
       'total'                      AS item,
       units,
       units * coalesce(price, 0)   AS amount,
       'USD'                        AS currency
FROM weighted_units
