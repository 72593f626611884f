-- Calls by the rates of the plan, each call by itself: connection fee, then its seconds at the rates of the time of day,
-- rounded up to the increments of each rate. A call that runs from peak into off-peak is charged at both.
CREATE MATERIALIZED VIEW calls
WITH (window = 'month', timezone = 'Europe/Madrid', grace = '3 days', effective_from = '2025-10-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Calls ' || r.destination                                             AS item,
       sum(u.quantity)                                                       AS quantity,
       'second'                                                              AS unit,
       sum(call_charge(u.time, u.quantity, 'Europe/Madrid', r.rates))        AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN call_rates r ON r.plan = c.plan AND r.destination = u.destination
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.contract_id, c.currency, r.destination
