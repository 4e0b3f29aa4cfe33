-- Gives messages to their queues.
--   KEYS[1]  namespace (the other keys are derived: a cluster needs a namespace in {})
--   ARGV     items, see store_items
--   returns  the server's time, ms
store_items(KEYS[1], 1)
local now = redis.call("time")
return now[1] * 1000 + math.floor(now[2] / 1000)
