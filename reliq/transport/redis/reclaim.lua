-- Finds what this worker holds on a queue without knowing it: fetched, but the reply was lost.
--   KEYS[1]  namespace
--   ARGV[1]  broker id    ARGV[2]  queue    ARGV[3]  lease, ms    ARGV[4..]  ids that the worker knows
--   returns  {server time ms, {id, ...}, {body, ...}}
local ns = KEYS[1]
local acks = ns .. ":__acks__." .. ARGV[1] .. "." .. ARGV[2]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
local known = {}
for i = 4, #ARGV do
    known[ARGV[i]] = true
end
local ids, bodies = {}, {}
for _, id in ipairs(redis.call("smembers", acks)) do
    if not known[id] then
        local body = redis.call("hget", ns .. ":" .. ARGV[2] .. ".msgs", id)
        if body then
            ids[#ids + 1] = id
            bodies[#bodies + 1] = body
        else
            redis.call("srem", acks, id)
        end
    end
end
return {now, ids, bodies}
