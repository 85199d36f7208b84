"""The views of a journal: what happened in plain columns and RFC 3339 times, for people, sqlite3 and datasette.

They hold nothing: a registry that opens a journal makes them anew where they are not as here. What is no longer
in the journal they do not show, and what is kept of before its beginning they do.
"""

from __future__ import annotations

from collections.abc import Iterable

_AT = "strftime('%Y-%m-%dT%H:%M:%fZ', {} / 1e9, 'unixepoch')"
_ACTOR = (
    "actor ->> '$.uid' AS actor_uid, actor ->> '$.pid' AS actor_pid,"
    " actor ->> '$.program' AS actor_program, actor ->> '$.user' AS actor_user"
)

VIEWS: dict[str, str] = {
    "transitions": f"""
CREATE VIEW transitions AS
SELECT seq, {_AT.format("at_ns")} AS at, service, run, type,
       body ->> '$.source' AS source, body ->> '$.dest' AS dest, body ->> '$.reason' AS reason,
       cause, {_ACTOR}
FROM events WHERE body ->> '$.source' IS NOT NULL""",
    "runs": f"""
CREATE VIEW runs AS
SELECT service, run, pid, {_AT.format("began_ns")} AS started,
       {_AT.format("ended_ns")} AS ended, (ended_mono_ns - began_mono_ns) / 1e9 AS duration_s,
       exit_code, signal, reason, {_AT.format("ready_ns")} AS ready
FROM (
    SELECT service, run,
           max(at_ns) FILTER (WHERE type = 'spawned') AS began_ns,
           max(mono_ns) FILTER (WHERE type = 'spawned') AS began_mono_ns,
           max(body ->> '$.pid') FILTER (WHERE type = 'spawned') AS pid,
           max(at_ns) FILTER (WHERE type = 'became_ready') AS ready_ns,
           max(at_ns) FILTER (WHERE type IN ('exited', 'lost')) AS ended_ns,
           max(mono_ns) FILTER (WHERE type = 'exited') AS ended_mono_ns,
           max(body ->> '$.exit_code') FILTER (WHERE type = 'exited') AS exit_code,
           max(body ->> '$.signal') FILTER (WHERE type = 'exited') AS signal,
           max(body ->> '$.reason') FILTER (WHERE type IN ('exited', 'lost')) AS reason
    FROM events WHERE type IN ('spawned', 'became_ready', 'exited', 'lost') AND run IS NOT NULL
    GROUP BY service, run
) WHERE began_ns IS NOT NULL""",
    "intervals": f"""
CREATE VIEW intervals AS
SELECT service, state, {_AT.format("began_ns")} AS began, {_AT.format("ended_ns")} AS ended,
       (ended_ns - began_ns) / 1e9 AS duration_s, reason, seq
FROM (
    SELECT *, lead(began_ns) OVER (PARTITION BY service ORDER BY seq) AS ended_ns
    FROM (
        SELECT key AS service, value ->> '$.state' AS state, value ->> '$.since_ns' AS began_ns,
               value ->> '$.reason' AS reason, value ->> '$.cause' AS seq, 'defined' AS type
        FROM anchor, json_each(state, '$.services')
        UNION ALL
        SELECT service, body ->> '$.dest', at_ns, body ->> '$.reason', seq, type
        FROM events WHERE seq > coalesce((SELECT seq FROM anchor), 0) AND service IS NOT NULL
            AND (body ->> '$.dest' <> body ->> '$.source' OR type IN ('defined', 'removed'))
    )
) WHERE type <> 'removed'""",
    "restarts": f"""
CREATE VIEW restarts AS
SELECT restart.seq, {_AT.format("restart.at_ns")} AS at, restart.service, restart.run,
       coalesce(ended.body ->> '$.reason', restart.body ->> '$.reason') AS reason,
       restart.body ->> '$.attempt' AS attempt, restart.body ->> '$.delay_s' AS delay_s
FROM events AS restart LEFT JOIN events AS ended ON ended.seq = restart.cause
WHERE restart.type = 'restart_scheduled'""",
    "actions": f"""
CREATE VIEW actions AS
SELECT seq, {_AT.format("at_ns")} AS at,
       replace(type, '_requested', '') AS action, service, run, {_ACTOR}
FROM events WHERE actor IS NOT NULL
    AND type IN ('start_requested', 'stop_requested', 'restart_requested', 'reset_requested',
                 'signal_requested', 'reload_requested', 'defined', 'redefined', 'removed')""",
    "probes": f"""
CREATE VIEW probes AS
SELECT seq, {_AT.format("at_ns")} AS at, service, run, body ->> '$.check' AS "check",
       body ->> '$.ok' AS ok, body ->> '$.error' AS error,
       body ->> '$.ended.count' AS ended_count
FROM events WHERE type = 'probe_changed'""",
}
"""Each view by its name."""

PRESENT = "SELECT type, name, sql FROM sqlite_schema"


def renewal(present: Iterable[tuple[str, str, str]]) -> str:
    """What makes the views of a file anew where they are not as here; nothing where they are.

    A table or index that somebody gave a view's name stays.
    """
    found = {name: (kind, sql) for kind, name, sql in present}
    changes = [
        f"DROP VIEW IF EXISTS {name}; {sql.strip()};"
        for name, sql in VIEWS.items()
        if found.get(name) != ("view", sql.strip()) and found.get(name, ("view",))[0] == "view"
    ]
    return f"BEGIN IMMEDIATE; {' '.join(changes)} COMMIT;" if changes else ""
