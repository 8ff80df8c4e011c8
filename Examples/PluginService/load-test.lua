-- Requests that each carry an id of their own, and a check that every answer is that of one of this thread's open
-- requests: not a byte of another one's.

local threads = {}
local count = 0

function setup(thread)
    count = count + 1
    thread:set("number", count)
    table.insert(threads, thread)
end

function init()
    answers, wrong, refused = 0, 0, 0
    issued = 0
    expected = {}
end

local function big(value)
    return string.char(math.floor(value / 16777216) % 256, math.floor(value / 65536) % 256,
        math.floor(value / 256) % 256, value % 256)
end

-- A zlib stream with the bytes as they are, of which there are fewer than 65536 (RFC 1950, RFC 1951).
local function stored(bytes)
    local a, b = 1, 0
    for i = 1, #bytes do
        a = (a + bytes:byte(i)) % 65521
        b = (b + a) % 65521
    end
    local low, high = #bytes % 256, math.floor(#bytes / 256)
    return string.char(0x78, 0x01, 1, low, high, 255 - low, 255 - high) .. bytes .. big(b * 65536 + a)
end

function request()
    issued = issued + 1
    local id = string.format("request-%d-%d", number, issued)
    if issued % 2 == 0 then
        expected[id .. "/"] = true
        return wrk.format("POST", "/plugin/tag", nil, id)
    end
    local text = (id .. ";"):rep(1 + issued % 40)
    expected[text] = true
    return wrk.format("POST", "/inflate", nil, stored(text))
end

function response(status, headers, body)
    answers = answers + 1
    if status ~= 200 then
        refused = refused + 1
    elseif expected[body] then
        expected[body] = nil
    else
        wrong = wrong + 1
    end
end

function done(summary)
    local sums = { answers = 0, wrong = 0, refused = 0 }
    for _, thread in ipairs(threads) do
        for name in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
    end
    print(string.format("answers: %d, wrong: %d, refused: %d", sums.answers, sums.wrong, sums.refused))
end
