-- Deletes dead letters older than a retention.
--   KEYS[1]  namespace
--   ARGV[1]  retention, ms    ARGV[2]  how many at most per queue    ARGV[3..]  queues
--   returns  how many were deleted
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local deleted = 0
for i = 3, #ARGV do
    local dead = KEYS[1] .. ":" .. ARGV[i] .. ".dead"
    local old = redis.call("zrangebyscore", dead, "-inf", now - tonumber(ARGV[1]), "limit", 0, tonumber(ARGV[2]))
    for _, id in ipairs(old) do
        deleted = deleted + remove_letter(KEYS[1], ARGV[i], id)
    end
end
return deleted
