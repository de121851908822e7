-- Takes tokens from a bucket, in one step.
--
-- KEYS[1]: the client. Its value is a time, the time that the missing tokens take to come back (microseconds, and a part of one
-- in units of 1 / limit), and the limit for which that was computed.
-- ARGV: limit, window, burst, token, token_part, full, full_part, cost, extra, mode. Times are microseconds, all numbers
-- integers below 2^53. `token` is the time of one token, `full` that of `burst` tokens. `extra` and `mode` as in the sliding window.
-- Returns: granted, remaining, more_in, reset_in, refused_for (-1: it passes), 0.
local limit, window, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local token, token_part, full, full_part = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local cost, extra, mode = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local stored = redis.call('GET', KEYS[1])
local at, missing, part, limit_then = now, 0, 0, limit
if stored then at, missing, part, limit_then = unpack(cmsgpack.unpack(stored)) end
if limit_then ~= limit then
  -- As many tokens, which come back in another time. Rounded up.
  missing, part = math.ceil((missing + 1) * limit_then / limit), 0
end
-- After a step back of the server's clock, nothing comes back for that time, and nothing more goes.
local elapsed = math.max(0, now - at)
if elapsed > missing then missing, part = 0, 0 else missing = missing - elapsed end

-- The time of so many tokens.
local function time_of(tokens)
  local parts = tokens * token_part
  local carry = math.floor(parts / limit)
  return tokens * token + carry, parts - carry * limit
end

-- Adds so many tokens to what is missing.
local function with(tokens)
  local more, more_part = time_of(tokens)
  local sum = part + more_part
  local carry = sum >= limit and 1 or 0
  return missing + more + carry, sum - carry * limit
end

-- The number of tokens in the bucket.
local function rest()
  local left, left_part = full - missing, full_part - part
  if left_part < 0 then left, left_part = left - 1, left_part + limit end
  if left < 0 then return 0 end
  return math.min(burst, math.floor((left * limit + left_part) / window))
end

local granted, refused_for = 0, -1
local after, after_part = with(cost)
if mode == 1 then
  local less, less_part = time_of(cost)
  missing, part = missing - less, part - less_part
  if part < 0 then missing, part = missing - 1, part + limit end
  if missing < 0 then missing, part = 0, 0 end
  granted = cost
elseif mode == 2 or after < full or (after == full and after_part <= full_part) then
  missing, part, granted = after, after_part, cost
  if extra > 0 then
    local more = math.min(extra, math.floor(rest() / 8))
    missing, part = with(more)
    granted = granted + more
  end
else
  refused_for = math.max(1, after - full + (after_part > full_part and 1 or 0))
end

local reset_in = missing + (part > 0 and 1 or 0)
if granted > 0 then
  if reset_in == 0 then
    redis.call('DEL', KEYS[1])
  else
    local value = cmsgpack.pack({now, missing, part, limit})
    redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', math.ceil(reset_in / 1000) + 1))
  end
end

local remaining, more_in = rest(), 0
if remaining < burst then
  -- As long as it takes until no more than the others are missing.
  more_in = math.ceil(missing + part / limit - (burst - remaining - 1) * window / limit)
end
return {granted, remaining, math.max(0, more_in), reset_in, refused_for, 0}
