-- Removes messages that are done.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2..]  groups: queue, how many, that many message ids in Redis
--   returns  how many were still ours
--
-- A body is deleted only if this worker still held its id: one that was taken back belongs to another run.
local total, i = 0, 2
while i < #ARGV do
    local acks = KEYS[1] .. ":__acks__." .. ARGV[1] .. "." .. ARGV[i]
    local last = i + 1 + tonumber(ARGV[i + 1])
    local done = {}
    for j = i + 2, last do
        if redis.call("srem", acks, ARGV[j]) == 1 then
            done[#done + 1] = ARGV[j]
        end
    end
    if #done > 0 then
        redis.call("hdel", KEYS[1] .. ":" .. ARGV[i] .. ".msgs", unpack(done))
    end
    total = total + #done
    i = last + 1
end
return total
