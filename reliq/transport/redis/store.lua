-- Prepended to every script that stores messages or letters. No KEYS or ARGV of its own.
--
-- Keys it writes, for a queue q of namespace ns:
--   ns:q                    list    ids of the messages that are ready
--   ns:q.msgs               hash    id -> body (ready and unacked)
--   ns:q.DQ, ns:q.DQ.msgs           the same for plain Dramatiq's delays
--   ns:q.delayed            zset    id -> due time, ms
--   ns:q.delayed.msgs       hash    id -> body
--   ns:q.dead               zset    letter id -> time of death, ms
--   ns:q.dead.msgs          hash    letter id -> body
--   ns:q.dead.meta          hash    letter id -> record of a death that its body cannot carry, JSON
--   ns:q.dead.index         hash    letter id -> fingerprint
--   ns:q.dead.groups        hash    fingerprint -> {"actor","error","reason"}, JSON
--   ns:q.dead.versions      hash    fingerprint -> [versions of the code that died so, the newest last], JSON
--   ns:q.dead.group.<fp>    zset    letter id -> time of death, ms
--   ns:reliq:serving:q      string  there while a reliq worker consumes q (expires with its lease)

-- Stores one message. A delayed one waits in our zset if a reliq worker is there to promote it, else in the form
-- that plain Dramatiq's workers know. An id that is there already is not stored twice.
local function store_message(ns, queue, id, body, due)
    local base = ns .. ":" .. queue
    if due == "" then
        if redis.call("hsetnx", base .. ".msgs", id, body) == 1 then
            redis.call("rpush", base, id)
        end
    elseif redis.call("exists", ns .. ":reliq:serving:" .. queue) == 1 then
        if redis.call("hsetnx", base .. ".delayed.msgs", id, body) == 1 then
            redis.call("zadd", base .. ".delayed", due, id)
        end
    elseif redis.call("hsetnx", base .. ".DQ.msgs", id, body) == 1 then
        redis.call("rpush", base .. ".DQ", id)
    end
end

-- Adds a version to those of a group, the last ten.
local function note_version(key, fingerprint, version)
    local known = redis.call("hget", key, fingerprint)
    local versions = known and cjson.decode(known) or {}
    for _, one in ipairs(versions) do
        if one == version then
            return
        end
    end
    versions[#versions + 1] = version
    if #versions > 10 then
        table.remove(versions, 1)
    end
    redis.call("hset", key, fingerprint, cjson.encode(versions))
end

local function store_letter(ns, queue, id, body, died_at, meta, fingerprint, about, version)
    local dead = ns .. ":" .. queue .. ".dead"
    redis.call("hset", dead .. ".msgs", id, body)
    redis.call("zadd", dead, died_at, id)
    if meta ~= "" then
        redis.call("hset", dead .. ".meta", id, meta)
    end
    redis.call("hset", dead .. ".index", id, fingerprint)
    redis.call("hset", dead .. ".groups", fingerprint, about)
    if version ~= "" then
        note_version(dead .. ".versions", fingerprint, version)
    end
    redis.call("zadd", dead .. ".group." .. fingerprint, died_at, id)
end

local function remove_letter(ns, queue, id)
    local dead = ns .. ":" .. queue .. ".dead"
    local removed = redis.call("zrem", dead, id)
    redis.call("hdel", dead .. ".msgs", id)
    redis.call("hdel", dead .. ".meta", id)
    local fingerprint = redis.call("hget", dead .. ".index", id)
    if fingerprint then
        redis.call("hdel", dead .. ".index", id)
        redis.call("zrem", dead .. ".group." .. fingerprint, id)
        if redis.call("exists", dead .. ".group." .. fingerprint) == 0 then
            redis.call("hdel", dead .. ".groups", fingerprint)
            redis.call("hdel", dead .. ".versions", fingerprint)
        end
    end
    return removed
end

-- Stores a list of items that begins at ARGV[i]: "m" queue id body due | "l" queue id body died_at meta fp about version.
local function store_items(ns, i)
    while i <= #ARGV do
        if ARGV[i] == "m" then
            store_message(ns, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
            i = i + 5
        else
            store_letter(
                ns, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6], ARGV[i + 7], ARGV[i + 8]
            )
            i = i + 9
        end
    end
end
