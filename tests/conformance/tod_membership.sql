-- Whether an instant lies in one of the day parts, in the tariff's zone: from <= local time < to.
-- A day part runs over midnight when from > to and is empty when they are equal.
CREATE MATERIALIZED VIEW tod_membership
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT e.case_id                                                                            AS customer_id,
       'total'                                                                              AS item,
       0                                                                                    AS amount,
       'USD'                                                                                AS currency,
       coalesce(bool_or(in_time_of_day(e.at, e.timezone, d.from_time, d.to_time)), FALSE)   AS inside
FROM event e
LEFT JOIN day_parts d ON d.case_id = e.case_id
GROUP BY e.case_id
