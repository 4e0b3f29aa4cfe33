-- Says that a worker lives, which queues it serves, and what it is.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  lease, ms    ARGV[3]  {"host","pid","queues",...}, JSON    ARGV[4..]  queues served
--   returns  {1 if the lease had not run out, server time ms}
--
-- Begins with pexpire, a write that a full server allows; after it the others are allowed too.
local ns = KEYS[1]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local held = redis.call("pexpire", ns .. ":reliq:worker:" .. ARGV[1], ARGV[2])
if held == 0 then
    redis.call("set", ns .. ":reliq:worker:" .. ARGV[1], "1", "px", ARGV[2])
end
for i = 4, #ARGV do
    if redis.call("pexpire", ns .. ":reliq:serving:" .. ARGV[i], ARGV[2]) == 0 then
        redis.call("set", ns .. ":reliq:serving:" .. ARGV[i], ARGV[1], "px", ARGV[2])
    end
end
redis.call("hset", ns .. ":reliq:workers", ARGV[1], ARGV[3])
redis.call("zadd", ns .. ":__heartbeats__", now, ARGV[1])
return {held, now}
