-- Sessions by their part of a day, cut at its end; a day of Lord Howe Island has 24.5 hours on 5 April.
CREATE MATERIALIZED VIEW sessions
WITH (window = 'day', timezone = 'Australia/Lord_Howe', effective_from = '2026-04-01', effective_to = '2026-04-11')
AS
SELECT c.customer_id,
       'Sessions'                                                                  AS item,
       sum(u.quantity)                                                             AS quantity,
       sum(prorate(c.base_fee, u.time, u."end", w.window_start, w.window_end))     AS amount,
       c.currency
FROM usage u
CROSS JOIN billing_window w
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'session'
GROUP BY c.customer_id, c.currency
