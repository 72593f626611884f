-- A fee for those who used neither calls nor storage: NOT EXISTS.
CREATE MATERIALIZED VIEW idle_fee
WITH (window = 'month', timezone = 'Asia/Kathmandu', effective_from = '2026-02-01', effective_to = '2026-05-01', fan_out = 'allowed')
AS
SELECT k.customer_id, 'Idle fee' AS item, 9.99 AS amount, k.currency
FROM customers k
WHERE NOT EXISTS (
    SELECT 1
    FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE c.customer_id = k.customer_id AND u.meter IN ('call', 'storage')
)
