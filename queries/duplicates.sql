-- Files with the same content, by what all but one of them take.
SELECT
  min(key) AS example, count(*) AS copies, count(DISTINCT owner) AS owners, bytes AS bytes_each,
  (count(*) - 1) * bytes AS bytes
FROM versions WHERE current AND bytes > 0
GROUP BY etag, bytes HAVING count(*) > 1
ORDER BY 5 DESC, example LIMIT 100
