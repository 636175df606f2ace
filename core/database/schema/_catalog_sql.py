"""The query behind `catalog`: each part gives kind, name, the table it belongs to (or null), and the definition.

Left out: partitions and what hangs on them (writers make them as months go by), what belongs to an extension, owners and
their own privileges, those of the restricted role (it belongs to the server and may be missing; the doctor sees to it), the
order of columns, and indexes and sequences that a constraint or an identity column stands for.
PostgreSQL 15 to 18.
"""

_RELATIONS = """
WITH place AS (SELECT oid, nspname, nspowner, nspacl FROM pg_namespace WHERE nspname = :schema),
relations AS (
    SELECT c.* FROM pg_class c JOIN place ON c.relnamespace = place.oid
    WHERE NOT c.relispartition AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')),
tables AS (SELECT * FROM relations WHERE relkind IN ('r', 'p', 'f')),
functions AS (
    SELECT p.* FROM pg_proc p JOIN place ON p.pronamespace = place.oid
    WHERE p.prokind IN ('f', 'p', 'w') AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')),
constraints AS (
    SELECT k.*, t.relname FROM pg_constraint k JOIN tables t ON t.oid = k.conrelid
    WHERE k.conparentid = 0 AND k.contype <> 't' AND (k.contype <> 'n' OR NOT k.convalidated)),
indexes AS (
    SELECT i.*, c.relname AS index_name, t.relname FROM pg_index i
    JOIN relations t ON t.oid = i.indrelid JOIN pg_class c ON c.oid = i.indexrelid
    WHERE t.relkind IN ('r', 'p', 'm')
    AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))),
triggers AS (
    SELECT g.*, t.relname FROM pg_trigger g JOIN relations t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal),
policies AS (SELECT p.*, t.relname FROM pg_policy p JOIN tables t ON t.oid = p.polrelid)
"""

_TABLES = """
SELECT 'table', relname::text, relname::text, concat_ws(', ',
    CASE relkind WHEN 'p' THEN 'partitioned by ' || pg_get_partkeydef(oid) WHEN 'f' THEN 'foreign' ELSE 'plain' END,
    CASE relpersistence WHEN 'u' THEN 'unlogged' WHEN 't' THEN 'temporary' END,
    (SELECT 'inherits ' || string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno) FROM pg_inherits WHERE inhrelid = tables.oid),
    'with (' || array_to_string(reloptions, ', ') || ')',
    CASE WHEN relrowsecurity THEN 'row security enabled' END,
    CASE WHEN relforcerowsecurity THEN 'row security forced' END,
    CASE relreplident WHEN 'd' THEN NULL ELSE 'replica identity ' || relreplident::text END)
FROM tables
"""

_COLUMNS = """
SELECT 'column', t.relname || '.' || a.attname, t.relname, concat_ws(' ',
    format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation NOT IN (0, y.typcollation) THEN 'collate ' || a.attcollation::regcollation::text END,
    CASE WHEN a.attnotnull THEN 'not null' ELSE 'null' END,
    CASE a.attgenerated WHEN '' THEN 'default ' ELSE 'generated (' || a.attgenerated::text || ') ' END || pg_get_expr(d.adbin, d.adrelid),
    CASE a.attidentity WHEN '' THEN NULL WHEN 'a' THEN 'identity always' ELSE 'identity by default' END,
    (SELECT format('(%s start %s increment %s from %s to %s cache %s%s)', format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement,
        q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' cycle' END)
     FROM pg_depend o JOIN pg_sequence q ON q.seqrelid = o.objid
     WHERE o.classid = 'pg_class'::regclass AND o.refclassid = 'pg_class'::regclass AND o.deptype = 'i'
     AND o.refobjid = t.oid AND o.refobjsubid = a.attnum),
    CASE WHEN a.attstorage <> y.typstorage THEN 'storage ' || a.attstorage::text END,
    CASE WHEN a.attcompression <> '' THEN 'compression ' || a.attcompression::text END)
FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
"""

_ON_TABLES = """
SELECT 'constraint', relname || '.' || conname, relname, pg_get_constraintdef(oid) FROM constraints
UNION ALL
SELECT 'index', relname || '.' || index_name, relname, concat_ws(', ', pg_get_indexdef(indexrelid),
    CASE WHEN NOT indisvalid THEN 'invalid' END, CASE WHEN NOT indisready THEN 'not ready' END,
    CASE WHEN indisclustered THEN 'clustered' END, CASE WHEN indisreplident THEN 'replica identity' END)
FROM indexes
UNION ALL
SELECT 'policy', relname || '.' || polname, relname, concat_ws(' ',
    CASE WHEN polpermissive THEN 'permissive' ELSE 'restrictive' END,
    CASE polcmd WHEN '*' THEN 'for all' WHEN 'r' THEN 'for select' WHEN 'a' THEN 'for insert' WHEN 'w' THEN 'for update'
        WHEN 'd' THEN 'for delete' END,
    'to ' || (SELECT string_agg(CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r) END, ', ' ORDER BY pg_get_userbyid(r))
        FROM unnest(polroles) r),
    'using (' || pg_get_expr(polqual, polrelid) || ')', 'with check (' || pg_get_expr(polwithcheck, polrelid) || ')')
FROM policies
UNION ALL
SELECT 'trigger', relname || '.' || tgname, relname, concat_ws(', ', pg_get_triggerdef(oid),
    CASE tgenabled WHEN 'O' THEN NULL WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'on replicas' ELSE 'always' END)
FROM triggers
UNION ALL
SELECT 'rule', c.relname || '.' || r.rulename, c.relname, pg_get_ruledef(r.oid)
FROM pg_rewrite r JOIN relations c ON c.oid = r.ev_class WHERE r.rulename <> '_RETURN'
"""

_BESIDE_TABLES = """
SELECT 'function', format('%s(%s)', proname, pg_get_function_identity_arguments(oid)), NULL, pg_get_functiondef(oid) FROM functions
UNION ALL
SELECT CASE relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, relname, relname,
    concat_ws(' ', 'with (' || array_to_string(reloptions, ', ') || ')', pg_get_viewdef(oid))
FROM relations WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'sequence', c.relname, NULL, format('%s start %s increment %s from %s to %s cache %s%s', format_type(q.seqtypid, NULL),
    q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' cycle' END)
FROM relations c JOIN pg_sequence q ON q.seqrelid = c.oid
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')
UNION ALL
SELECT CASE y.typtype WHEN 'e' THEN 'enum' ELSE 'domain' END, y.typname, NULL, CASE y.typtype
    WHEN 'e' THEN (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = y.oid)
    ELSE concat_ws(' ', format_type(y.typbasetype, y.typtypmod), CASE WHEN y.typnotnull THEN 'not null' END, 'default ' || y.typdefault,
        (SELECT string_agg(k.conname || ' ' || pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname) FROM pg_constraint k
         WHERE k.contypid = y.oid AND k.contype = 'c')) END
FROM pg_type y JOIN place ON y.typnamespace = place.oid WHERE y.typtype IN ('e', 'd')
UNION ALL
SELECT 'statistics', x.stxname, NULL, pg_get_statisticsobjdef(x.oid) FROM pg_statistic_ext x JOIN relations c ON c.oid = x.stxrelid
"""

_PRIVILEGES = """
SELECT 'privileges', format('%s for %s', g.name, CASE a.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(a.grantee) END), g.relation,
    string_agg(DISTINCT lower(a.privilege_type) || CASE WHEN a.is_grantable THEN ' with grant option' ELSE '' END, ', ')
FROM (
    SELECT 'on ' || relname AS name, relname AS relation, relowner AS owner, relacl AS acl FROM relations
    UNION ALL
    SELECT 'on ' || c.relname || '.' || a.attname, c.relname, c.relowner, a.attacl
    FROM relations c JOIN pg_attribute a ON a.attrelid = c.oid WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT format('on %s(%s)', proname, pg_get_function_identity_arguments(oid)), NULL, proowner,
        COALESCE(proacl, acldefault('f', proowner)) FROM functions
    UNION ALL
    SELECT 'on schema ' || nspname, NULL, nspowner, nspacl FROM place
) g CROSS JOIN LATERAL aclexplode(g.acl) a
WHERE a.grantee <> g.owner AND a.grantee IS DISTINCT FROM to_regrole('panda_app')
GROUP BY g.name, g.relation, a.grantee
"""

_COMMENTS = """
SELECT 'comment', format('on %s %s', i.type, i.identity), g.relation, d.description
FROM (
    SELECT 'pg_class'::regclass AS class, oid, relname AS relation FROM relations
    UNION ALL SELECT 'pg_class'::regclass, indexrelid, relname FROM indexes
    UNION ALL SELECT 'pg_constraint'::regclass, oid, relname FROM constraints
    UNION ALL SELECT 'pg_trigger'::regclass, oid, relname FROM triggers
    UNION ALL SELECT 'pg_policy'::regclass, oid, relname FROM policies
    UNION ALL SELECT 'pg_proc'::regclass, oid, NULL FROM functions
) g JOIN pg_description d ON d.classoid = g.class AND d.objoid = g.oid
CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) i
"""

_PARTS = (_TABLES, _COLUMNS, _ON_TABLES, _BESIDE_TABLES, _PRIVILEGES, _COMMENTS)

CATALOG_SQL = _RELATIONS + "UNION ALL".join(_PARTS)
