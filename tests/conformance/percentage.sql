-- Percentage of event amounts, plus a fixed fee per event, with free events and a free amount in one of two ways.
--
-- running_total: with `total` the sum of the first k events, what is free is the least of the sum of the free events and
-- of the free amount; the number of free events is the least of those allowed and of those whose running total stays below
-- the free amount. Amount after k events = (total - free) * rate / 100 + (k - free events) * fixed fee.
--
-- per_event: every event is priced by itself, value * rate / 100 + fixed fee, not below a minimum and not above a maximum.
-- A free amount is drawn down by event after event, and the event that reaches it is charged for the rest; only without
-- a free amount does the number of free events matter.
CREATE MATERIALIZED VIEW percentage
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH running AS (
    SELECT c.case_id,
           c.free_rule,
           c.rate_percent,
           coalesce(c.fixed_fee, 0)                                         AS fixed_fee,
           nullif(c.free_events, 0)                                         AS free_events,
           nullif(c.free_amount, 0)                                         AS free_amount,
           c.event_min,
           c.event_max,
           e.position,
           e.amount                                                         AS event_amount,
           sum(e.amount) OVER (PARTITION BY c.case_id ORDER BY e.position)  AS total,
           sum(CASE WHEN e.position <= c.free_events THEN e.amount ELSE 0 END)
               OVER (PARTITION BY c.case_id ORDER BY e.position)            AS total_of_free_events
    FROM cases c
    LEFT JOIN events e ON e.case_id = c.case_id
),
allowances AS (
    SELECT running.*,
           coalesce(least(CASE WHEN free_events IS NOT NULL THEN total_of_free_events END,
                          CASE WHEN free_amount IS NOT NULL THEN least(free_amount, total) END), 0) AS free_total,
           coalesce(least(CASE WHEN free_events IS NOT NULL THEN least(free_events, position) END,
                          CASE WHEN free_amount IS NOT NULL
                               THEN sum(CASE WHEN total < free_amount THEN 1 ELSE 0 END)
                                        OVER (PARTITION BY case_id ORDER BY position) END), 0)      AS free_count,
           -- Null: the event is free.
           CASE
               WHEN free_amount IS NOT NULL THEN CASE WHEN total >= free_amount THEN least(event_amount, total - free_amount) END
               WHEN position <= free_events THEN NULL
               ELSE event_amount
           END                                                                                      AS charged_value
    FROM running
),
priced AS (
    SELECT case_id,
           position,
           CASE
               WHEN free_rule = 'per_event'
                   THEN sum(coalesce(percentage(charged_value, rate_percent, fixed_fee, event_min, event_max), 0))
                            OVER (PARTITION BY case_id ORDER BY position)
               WHEN total = 0 THEN 0
               ELSE percentage(total - free_total, rate_percent, (position - free_count) * fixed_fee)
           END AS running_amount
    FROM allowances
),
marginal AS (
    SELECT case_id,
           position,
           running_amount,
           running_amount - coalesce(lag(running_amount) OVER (PARTITION BY case_id ORDER BY position), 0) AS marginal_amount
    FROM priced
)
SELECT case_id                           AS customer_id,
       'total'                           AS item,
       CAST(NULL AS BIGINT)              AS position,
       coalesce(sum(marginal_amount), 0) AS amount,
       CAST(NULL AS DECIMAL(38, 18))     AS running_amounts,
       CAST(NULL AS DECIMAL(38, 18))     AS marginal_amounts,
       'USD'                             AS currency
FROM marginal
GROUP BY case_id
UNION ALL
SELECT case_id, 'part', position, 0, running_amount, marginal_amount, 'USD'
FROM marginal
WHERE position IS NOT NULL
