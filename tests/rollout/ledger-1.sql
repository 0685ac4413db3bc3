-- A ledger as the first version of it was written. Never changed: it is what people have.
PRAGMA journal_mode = WAL;
CREATE TABLE decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, app TEXT NOT NULL, path TEXT NOT NULL,
    reason TEXT NOT NULL, decided REAL NOT NULL, rule TEXT NOT NULL, bucket INTEGER, flags TEXT NOT NULL,
    problem TEXT NOT NULL, host TEXT NOT NULL, stack TEXT NOT NULL, team TEXT NOT NULL,
    buildpacks TEXT NOT NULL, nsbuild TEXT NOT NULL
);
CREATE TABLE outcome (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, decision TEXT NOT NULL, app TEXT NOT NULL,
    path TEXT NOT NULL, arm TEXT NOT NULL, result TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL,
    shadow INTEGER NOT NULL, reason TEXT NOT NULL, exit_code INTEGER, namespace_exit_code INTEGER,
    fallback TEXT NOT NULL, leaks INTEGER, slug_bytes INTEGER, diff TEXT, boot TEXT NOT NULL,
    flags TEXT NOT NULL, host TEXT NOT NULL, stack TEXT NOT NULL, buildpacks TEXT NOT NULL,
    nsbuild TEXT NOT NULL
);
INSERT INTO decision (id, app, path, reason, decided, rule, bucket, flags, problem, host, stack, team, buildpacks, nsbuild)
VALUES ('d1', 'shop', 'shadow', 'percentage', 1793000000.5, '', 4711, 'sha256:00', '', 'b1', 'heroku-24', '', '["heroku/python"]', '0.1.0');
INSERT INTO outcome (id, decision, app, path, arm, result, started, seconds, shadow, reason, exit_code, namespace_exit_code,
    fallback, leaks, slug_bytes, diff, boot, flags, host, stack, buildpacks, nsbuild)
VALUES
    ('o1', 'd1', 'shop', 'shadow', 'namespace', 'same', 1793000001.0, 12.5, 1, 'percentage', 0, NULL,
     '', 0, 1048576, '{"time": 3}', 'passed', 'sha256:00', 'b1', 'heroku-24', '["heroku/python"]', '0.1.0'),
    ('o2', 'd2', 'blog', 'direct', 'direct', 'failed', 1793000002.0, 3.5, 0, 'off', 1, NULL,
     '', NULL, NULL, NULL, '', '', 'b1', '', '[]', '0.1.0');
PRAGMA user_version = 1;
