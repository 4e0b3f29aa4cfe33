-- Takes messages off a queue for one worker.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue    ARGV[3]  how many at most    ARGV[4]  lease, ms
--   returns  {server time ms, {id, ...}, {body, ...}}; an id whose body is gone is left out
--
-- Begins with a removal, so that a full server can be drained. What is fetched is held by a worker that is alive by
-- this very step: its lease is renewed here too.
local ns = KEYS[1]
local queue = ns .. ":" .. ARGV[2]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local ids = redis.call("lrange", queue, 0, ARGV[3] - 1)
if #ids == 0 then
    return {now, {}, {}}
end
redis.call("ltrim", queue, #ids, -1)
local acks = ns .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
if redis.call("pexpire", ns .. ":reliq:worker:" .. ARGV[1], ARGV[4]) == 0 then
    redis.call("set", ns .. ":reliq:worker:" .. ARGV[1], ARGV[2], "px", ARGV[4])
end
redis.call("zadd", ns .. ":__heartbeats__", now, ARGV[1])
redis.call("sadd", acks, unpack(ids))
local bodies = redis.call("hmget", queue .. ".msgs", unpack(ids))
local found_ids, found = {}, {}
for i = 1, #ids do
    if bodies[i] then
        found_ids[#found_ids + 1] = ids[i]
        found[#found + 1] = bodies[i]
    else
        redis.call("srem", acks, ids[i])
    end
end
return {now, found_ids, found}
