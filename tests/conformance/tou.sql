-- Time of use: each reading is priced by the day part that its start falls in; a holiday counts as a Sunday.
CREATE MATERIALIZED VIEW tou
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT t.case_id                                                                                              AS customer_id,
       'total'                                                                                                AS item,
       coalesce(sum(time_of_use(r.at, r.until, r.units, coalesce(t.timezone, 'UTC'), w.windows, h.holidays)), 0) AS amount,
       'USD'                                                                                                  AS currency
FROM tariff t
LEFT JOIN readings r ON r.case_id = t.case_id
LEFT JOIN day_parts w ON w.case_id = t.case_id
LEFT JOIN public_holidays h ON h.case_id = t.case_id
GROUP BY t.case_id
