-- What came and went by month, and what was stored at its end.
SELECT
  month, sum(came) AS uploaded, sum(came * bytes) AS uploaded_bytes,
  sum(went) AS deleted, sum(went * bytes) AS deleted_bytes,
  sum(sum((came - went) * bytes)) OVER (ORDER BY month) AS stored_bytes
FROM (
  SELECT uploaded AS month, 1 AS came, 0 AS went, bytes FROM versions
  UNION ALL
  SELECT deleted, 0, 1, bytes FROM versions WHERE deleted IS NOT NULL
) AS changes
GROUP BY month ORDER BY month
