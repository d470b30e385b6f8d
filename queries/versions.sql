-- What all queries begin with: the versions of files in the newest export that is complete, for its
-- summary comes last. Objects are s3://<bucket>/AWSDynamoDB/<export>/..., and <export> begins with
-- its time. In SQL that Athena (Trino) and DuckDB, on the local cloud, read alike.
WITH lines AS (
  SELECT item, "$path" AS path, split_part("$path", '/', 5) AS export FROM exports
),
items AS (
  SELECT item FROM lines
  WHERE export = (SELECT max(export) FROM lines WHERE path LIKE '%/manifest-summary.json')
),
versions AS (
  -- What has no size is a delete marker, or could not be read.
  SELECT
    file.item.key.s AS key, file.item.owner.s AS owner, file.item.content_type.s AS content_type,
    file.item.etag.s AS etag, CAST(file.item.size.n AS bigint) AS bytes,
    substr(file.item.uploaded_at.s, 1, 7) AS uploaded, substr(file.item.deleted_at.s, 1, 7) AS deleted,
    newest.item.id.s IS NOT NULL AS current
  FROM items AS file
  LEFT JOIN items AS newest ON newest.item.id.s = file.item.id.s
    AND newest.item.version_id.s = file.item.version_id.s
    AND newest.item.record.s = 'newest' AND newest.item.deleted_at.s IS NULL
  WHERE file.item.record.s LIKE 'version#%' AND file.item.size.n IS NOT NULL
)
