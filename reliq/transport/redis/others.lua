-- Says whether another worker is alive that could take messages of a queue.
--   KEYS[1]  namespace
--   ARGV[1]  broker id of who asks    ARGV[2]  queue    ARGV[3]  ms after which a stock worker counts as dead
--   returns  1 or 0
local ns = KEYS[1]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
for _, id in ipairs(redis.call("zrangebyscore", ns .. ":__heartbeats__", now - ARGV[3], "+inf")) do
    if id ~= ARGV[1] then
        local about = redis.call("hget", ns .. ":reliq:workers", id)
        if not about then
            return 1 -- plain Dramatiq's: which queues it serves is not known
        end
        if redis.call("exists", ns .. ":reliq:worker:" .. id) == 1 then
            for _, queue in ipairs(cjson.decode(about).queues) do
                if queue == ARGV[2] then
                    return 1
                end
            end
        end
    end
end
return 0
