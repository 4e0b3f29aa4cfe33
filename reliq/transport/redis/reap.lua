-- Returns what dead workers held to the head of its queue.
--   KEYS[1]  namespace
--   ARGV[1]  ms without a heartbeat after which a stock worker counts as dead
--   ARGV[2]  a worker id that is dead by its own word (it is stopping), or ""
--   ARGV[3]  the server's time in ms after which this request is too old to be obeyed
--   ARGV[4..]  queues to look at, besides those that a dead reliq worker had named
--   returns  how many messages were returned
--
-- A reliq worker is dead when its key has run out, on this server's clock alone. A stock worker is judged by its
-- own heartbeat, written with its own clock. A server that was frozen for a lease answers this request when every key
-- has run out, though nobody died: hence ARGV[3].
local ns = KEYS[1]
local now = redis.call("time")
now = now[1] * 1000 + math.floor(now[2] / 1000)
if now > tonumber(ARGV[3]) then
    return 0
end
local heartbeats = ns .. ":__heartbeats__"
local returned = 0

local function give_back(worker, queue)
    local acks = ns .. ":__acks__." .. worker .. "." .. queue
    local ids = redis.call("smembers", acks)
    if #ids == 0 then
        return
    end
    redis.call("del", acks)
    for _, id in ipairs(ids) do
        if redis.call("hexists", ns .. ":" .. queue .. ".msgs", id) == 1 then
            redis.call("lpush", ns .. ":" .. queue, id)
            returned = returned + 1
        end
    end
end

local function give_back_all(worker, queues)
    for _, queue in ipairs(queues) do
        give_back(worker, queue)
        give_back(worker, queue .. ".DQ")
    end
end

local here = {}
for i = 4, #ARGV do
    here[#here + 1] = ARGV[i]
end

local known = {}
local workers = redis.call("hgetall", ns .. ":reliq:workers")
for i = 1, #workers, 2 do
    local worker = workers[i]
    known[worker] = true
    if worker == ARGV[2] or redis.call("exists", ns .. ":reliq:worker:" .. worker) == 0 then
        give_back_all(worker, here)
        local read, about = pcall(cjson.decode, workers[i + 1])
        if read and type(about) == "table" and type(about.queues) == "table" then
            give_back_all(worker, about.queues)
        end
        for _, queue in ipairs(here) do
            if redis.call("get", ns .. ":reliq:serving:" .. queue) == worker then
                redis.call("del", ns .. ":reliq:serving:" .. queue)
            end
        end
        redis.call("del", ns .. ":reliq:worker:" .. worker)
        redis.call("hdel", ns .. ":reliq:workers", worker)
        redis.call("zrem", heartbeats, worker)
    end
end

-- Every command of plain Dramatiq leaves a heartbeat, senders' too, and nobody removes those that held nothing: a page
-- of 1,000 at a time, another with each two seconds.
local pages = math.ceil(redis.call("zcount", heartbeats, "-inf", now - tonumber(ARGV[1])) / 1000)
local page = pages > 1 and math.floor(now / 2000) % pages or 0
local silent = redis.call("zrangebyscore", heartbeats, "-inf", now - tonumber(ARGV[1]), "limit", page * 1000, 1000)
for _, worker in ipairs(silent) do
    if not known[worker] and redis.call("exists", ns .. ":reliq:worker:" .. worker) == 0 then
        give_back_all(worker, here)
    end
end
return returned
