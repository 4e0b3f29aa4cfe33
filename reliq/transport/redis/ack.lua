-- Removes messages that are done.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue    ARGV[3..]  message ids in Redis
--   returns  how many were still ours
--
-- A body is deleted only if this worker still held its id: one that was taken back belongs to another run.
local acks = KEYS[1] .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
local messages = KEYS[1] .. ":" .. ARGV[2] .. ".msgs"
local done = {}
for i = 3, #ARGV do
    if redis.call("srem", acks, ARGV[i]) == 1 then
        done[#done + 1] = ARGV[i]
    end
end
if #done > 0 then
    redis.call("hdel", messages, unpack(done))
end
return #done
