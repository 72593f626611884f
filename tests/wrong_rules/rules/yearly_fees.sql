-- A sound rule that others read: the fee of a year.
CREATE MATERIALIZED VIEW yearly_fees
WITH (window = 'year', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id, c.contract_id, 'Fee of the year' AS item, 12 * c.monthly_fee AS amount, c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
