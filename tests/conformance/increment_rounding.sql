-- Billed seconds of a call: none stay none; otherwise at least the minimum, then the first increment, then whole steps of the next.
CREATE MATERIALIZED VIEW increment_rounding
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT c.case_id                                                                              AS customer_id,
       'total'                                                                                AS item,
       0                                                                                      AS amount,
       'USD'                                                                                  AS currency,
       increments(c.seconds, c.first_seconds, c.next_seconds, coalesce(c.minimum_seconds, 0)) AS billed_seconds
FROM call c
