-- Gives delays (or letters) of one queue back to plain Dramatiq, a step at a time.
--   KEYS[1]  namespace
--   ARGV[1]  "delayed" | "dead"    ARGV[2]  queue    ARGV[3]  how many at most
--   returns  how many were moved; 0: nothing is left that can be moved
--
-- A delayed body is already in the form of a stock delay queue (queue name q.DQ, eta): it moves as it is. A letter
-- whose body nobody can read stays: plain Dramatiq could not show it either.
local ns = KEYS[1]
local queue = ns .. ":" .. ARGV[2]
local moved = 0
if ARGV[1] == "delayed" then
    local ids = redis.call("zrange", queue .. ".delayed", 0, tonumber(ARGV[3]) - 1)
    for _, id in ipairs(ids) do
        redis.call("zrem", queue .. ".delayed", id)
        local body = redis.call("hget", queue .. ".delayed.msgs", id)
        redis.call("hdel", queue .. ".delayed.msgs", id)
        if body then
            redis.call("hset", queue .. ".DQ.msgs", id, body)
            redis.call("rpush", queue .. ".DQ", id)
        end
        moved = moved + 1
    end
    return moved
end
local dead = queue .. ".dead"
for _, id in ipairs(redis.call("zrange", dead, 0, -1)) do
    if redis.call("hexists", dead .. ".meta", id) == 0 then
        local died_at = redis.call("zscore", dead, id)
        local body = redis.call("hget", dead .. ".msgs", id)
        remove_letter(ns, ARGV[2], id)
        redis.call("hset", queue .. ".XQ.msgs", id, body)
        redis.call("zadd", queue .. ".XQ", died_at, id)
        moved = moved + 1
        if moved >= tonumber(ARGV[3]) then
            break
        end
    end
end
return moved
