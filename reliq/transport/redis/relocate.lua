-- Moves messages that this worker fetched but that are not due into our delays, bodies as they are.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue they were fetched from    ARGV[3]  the plain queue
--   ARGV[4..]  id, due time in ms, id, due time ...
--   returns  how many were still ours
local ns = KEYS[1]
local acks = ns .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
local source = ns .. ":" .. ARGV[2] .. ".msgs"
local delayed = ns .. ":" .. ARGV[3] .. ".delayed"
local moved = 0
for i = 4, #ARGV, 2 do
    if redis.call("srem", acks, ARGV[i]) == 1 then
        local body = redis.call("hget", source, ARGV[i])
        if body then
            redis.call("hdel", source, ARGV[i])
            redis.call("hset", delayed .. ".msgs", ARGV[i], body)
            redis.call("zadd", delayed, ARGV[i + 1], ARGV[i])
            moved = moved + 1
        end
    end
end
return moved
