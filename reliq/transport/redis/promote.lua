-- Moves what is due from our delays to the queues.
--   KEYS[1]  namespace
--   ARGV[1]  how many at most per queue    ARGV[2..]  queues
--   returns  {moved, ms until the next is due (-1: none waits), server time ms}
local ns = KEYS[1]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local moved, wait = 0, -1
for i = 2, #ARGV do
    local queue = ns .. ":" .. ARGV[i]
    local delayed = queue .. ".delayed"
    local due = redis.call("zrangebyscore", delayed, "-inf", now, "limit", 0, tonumber(ARGV[1]))
    if #due > 0 then
        redis.call("zrem", delayed, unpack(due))
        local bodies = redis.call("hmget", delayed .. ".msgs", unpack(due))
        redis.call("hdel", delayed .. ".msgs", unpack(due))
        for j = 1, #due do
            if bodies[j] then
                redis.call("hset", queue .. ".msgs", due[j], bodies[j])
                redis.call("rpush", queue, due[j])
                moved = moved + 1
            end
        end
    end
    local first = redis.call("zrange", delayed, 0, 0, "withscores")
    if first[2] then
        local left = math.max(0, math.ceil(tonumber(first[2]) - now))
        if wait < 0 or left < wait then
            wait = left
        end
    end
end
return {moved, wait, now}
