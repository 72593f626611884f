-- Demand charge: the billed kW times the price per kW.
--   measured kW = the peak, or the mean of the highest `top_n` daily window energies / hours of the window
--   billed kW   = the greatest of measured kW, minimum kW and the ratchet's percentage of the highest previous peak
-- A price per month is brought to the days of the bill: price * month factor * days.
CREATE MATERIALIZED VIEW demand
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH ranked AS (
    SELECT case_id, kwh, row_number() OVER (PARTITION BY case_id ORDER BY kwh DESC) AS place
    FROM window_energies
),
top_energies AS (
    SELECT d.case_id, sum(r.kwh) / count(*) AS mean_kwh
    FROM tariff d
    JOIN ranked r ON r.case_id = d.case_id AND r.place <= d.top_n
    GROUP BY d.case_id
),
highest AS (
    SELECT case_id, max(kw) AS kw FROM previous_peaks GROUP BY case_id
),
billed AS (
    SELECT d.case_id,
           at_least(at_least(coalesce(t.mean_kwh / d.window_hours, d.peak_kw), d.minimum_kw), h.kw * d.ratchet_percent / 100) AS kw,
           d.price_per_kw * coalesce(d.month_factor * d.days, 1)                                                              AS price
    FROM tariff d
    LEFT JOIN top_energies t ON t.case_id = d.case_id
    LEFT JOIN highest h ON h.case_id = d.case_id
)
SELECT b.case_id      AS customer_id,
       'total'        AS item,
       b.kw * b.price AS amount,
       'USD'          AS currency,
       b.kw           AS billed_kw
FROM billed b
