-- Gives messages back to the head of their queue, in the order given.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue    ARGV[3..]  message ids in Redis
--   returns  how many were still ours
local acks = KEYS[1] .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
local queue = KEYS[1] .. ":" .. ARGV[2]
local returned = 0
for i = #ARGV, 3, -1 do
    if redis.call("srem", acks, ARGV[i]) == 1 and redis.call("hexists", queue .. ".msgs", ARGV[i]) == 1 then
        redis.call("lpush", queue, ARGV[i])
        returned = returned + 1
    end
end
return returned
