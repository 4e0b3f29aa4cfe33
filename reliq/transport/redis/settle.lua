-- Ends one delivery: removes the original and stores what it becomes, in one step.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue it was consumed from    ARGV[3]  message id in Redis
--   ARGV[4]  "settle", or "return" to give it back to its queue as it is
--   ARGV[5]  a key and ARGV[6] a field that exist once this settlement is stored, or ""
--   ARGV[7..] items, see store_items
--   returns  1 settled now, 2 had been settled (the reply was lost), 0 not ours any more: nothing written
--
-- The removal comes first: Redis lets a script go on writing on a full server only after it has removed something.
local ns = KEYS[1]
local base = ns .. ":" .. ARGV[2]
if redis.call("srem", ns .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2], ARGV[3]) == 0 then
    if ARGV[5] ~= "" and redis.call("hexists", ARGV[5], ARGV[6]) == 1 then
        return 2
    end
    return 0
end
if ARGV[4] == "return" then
    if redis.call("hexists", base .. ".msgs", ARGV[3]) == 1 then
        redis.call("lpush", base, ARGV[3])
    end
else
    redis.call("hdel", base .. ".msgs", ARGV[3])
    store_items(ns, 7)
end
return 1
