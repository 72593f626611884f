-- A call by its rates: each stretch in whole increments of its day part and group, and the connection fee of the first
-- day part, on the first leg only. The total is rounded as the tariff says; a maximum cost of the kind 'free' then caps
-- it, one of the kind 'disconnect' ends the call elsewhere and does not lower the price.
CREATE MATERIALIZED VIEW telecom
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH rated AS (
    SELECT c.case_id,
           CASE WHEN c.increment_places IS NULL
                THEN call_charge(c.started_at, c.seconds, 'UTC', r.rates, c.kind)
                ELSE call_charge(c.started_at, c.seconds, 'UTC', r.rates, c.kind, c.increment_places) END    AS charge,
           CASE WHEN c.increment_places IS NULL
                THEN call_breakdown(c.started_at, c.seconds, 'UTC', r.rates, c.kind)
                ELSE call_breakdown(c.started_at, c.seconds, 'UTC', r.rates, c.kind, c.increment_places) END AS stretches
    FROM (SELECT *, coalesce(call_kind, 'voice') AS kind FROM calls) c
    JOIN rates r ON r.case_id = c.case_id
),
unnested AS (
    SELECT case_id, unnest(stretches) AS stretch FROM rated
),
stretches AS (
    SELECT case_id, get_field(stretch, 'stretch') AS position,
           get_field(stretch, 'seconds') AS seconds, get_field(stretch, 'amount') AS amount
    FROM unnested
),
billed AS (
    SELECT case_id, sum(seconds) AS seconds, sum(amount) AS amount FROM stretches GROUP BY case_id
),
costs AS (
    SELECT r.case_id, CASE WHEN c.first_leg = FALSE THEN coalesce(b.amount, 0) ELSE r.charge END AS cost, coalesce(b.seconds, 0) AS seconds
    FROM rated r
    JOIN calls c ON c.case_id = r.case_id
    LEFT JOIN billed b ON b.case_id = r.case_id
),
rounded AS (
    SELECT t.case_id, t.seconds,
           CASE WHEN c.round_places IS NULL THEN t.cost
                ELSE round(t.cost, c.round_places, CASE c.round_mode WHEN 'ceil' THEN 'ceiling' ELSE c.round_mode END) END AS cost,
           CASE WHEN c.maximum_strategy = 'free' THEN c.maximum_cost END                                                 AS maximum
    FROM costs t
    JOIN calls c ON c.case_id = t.case_id
)
SELECT r.case_id                     AS customer_id,
       'total'                       AS item,
       at_most(r.cost, r.maximum)    AS amount,
       'USD'                         AS currency,
       r.seconds                     AS billed_seconds,
       CAST(NULL AS BIGINT)          AS position,
       CAST(NULL AS DECIMAL(38, 18)) AS span_seconds,
       CAST(NULL AS DECIMAL(38, 18)) AS span_amounts
FROM rounded r
UNION ALL
SELECT s.case_id, 'part', s.amount, 'USD', CAST(NULL AS DECIMAL(38, 18)), s.position, s.seconds, s.amount AS span_amounts
FROM stretches s
