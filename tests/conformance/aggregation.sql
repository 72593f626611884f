-- One figure of many events. Of events with the same id the one with the latest time counts.
-- A maximum per time bucket, or per group and bucket, is summed over them.
CREATE MATERIALIZED VIEW aggregation
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH ranked AS (
    SELECT e.case_id, e.id, e.at, e.value, e.group_name,
           row_number() OVER (PARTITION BY e.case_id, e.id ORDER BY e.at DESC, e.position DESC) AS place
    FROM events e
),
counted AS (
    SELECT r.case_id, r.at, r.value,
           CASE WHEN m.group_by IS NOT NULL THEN r.group_name END                                          AS group_name,
           CASE WHEN m.bucket IS NOT NULL THEN time_bucket(r.at, m.bucket_length, 'UTC') END               AS bucket_start
    FROM ranked r
    JOIN (SELECT *, CASE WHEN bucket IN ('minute', 'hour') THEN '1 ' || bucket ELSE bucket END AS bucket_length FROM meter) m
      ON m.case_id = r.case_id
    WHERE r.place = 1
),
totals AS (
    SELECT case_id, sum(value) AS total, count(*) AS events, unique(value) AS different, min(value) AS lowest,
           latest(value, at) AS last_value
    FROM counted
    GROUP BY case_id
),
bucket_maxima AS (
    SELECT case_id, group_name, bucket_start, max(value) AS highest
    FROM counted
    GROUP BY case_id, group_name, bucket_start
),
maxima AS (
    SELECT case_id, sum(highest) AS total FROM bucket_maxima GROUP BY case_id
)
SELECT m.case_id                       AS customer_id,
       'total'                         AS item,
       0                               AS amount,
       'USD'                           AS currency,
       coalesce(CASE m.aggregate
           WHEN 'sum'          THEN t.total
           WHEN 'max'          THEN x.total
           WHEN 'min'          THEN t.lowest
           WHEN 'count'        THEN t.events
           WHEN 'unique_count' THEN t.different
           WHEN 'average'      THEN t.total / t.events
           WHEN 'latest'       THEN t.last_value
       END, 0) * coalesce(m.multiplier, 1) AS value
FROM meter m
LEFT JOIN totals t ON t.case_id = m.case_id
LEFT JOIN maxima x ON x.case_id = m.case_id
