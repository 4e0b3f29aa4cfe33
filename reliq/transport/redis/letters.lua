-- Ends dead letters.
--   KEYS[1]  namespace
--   ARGV[1]  "discard" | "replay"    ARGV[2]  "reliq" or "stock": where the letter lies    ARGV[3]  queue
--   ARGV[4]  letter id    ARGV[5..]  items to store in the same step (replay), see store_items
--   returns  1 removed, 0 it was gone already and nothing was stored
local ns = KEYS[1]
local removed
if ARGV[2] == "stock" then
    local dead = ns .. ":" .. ARGV[3] .. ".XQ"
    removed = redis.call("zrem", dead, ARGV[4])
    redis.call("hdel", dead .. ".msgs", ARGV[4])
else
    removed = remove_letter(ns, ARGV[3], ARGV[4])
end
if removed == 0 then
    return 0
end
store_items(ns, 5)
return 1
