-- What is stored now, by owner and content type.
SELECT
  owner, content_type, count(*) FILTER (WHERE current) AS files,
  count(*) FILTER (WHERE NOT current) AS replaced,
  coalesce(sum(bytes) FILTER (WHERE NOT current), 0) AS replaced_bytes, sum(bytes) AS bytes
FROM versions WHERE deleted IS NULL
GROUP BY owner, content_type ORDER BY bytes DESC, owner, content_type
