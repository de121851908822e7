-- Takes units from a sliding window, in one step.
--
-- KEYS[1]: the client. Its value is the time of the last change, and then time and number of each entry, oldest first.
-- ARGV: limit, window, grain, cost, extra, mode, counted_at. Times are microseconds, all numbers integers below 2^53.
--   mode 0 takes `cost` if it fits, and then up to `extra` of an eighth of what is left;
--   mode 1 gives back `cost` that was counted at `counted_at`;
--   mode 2 takes `cost` whether it fits or not.
-- Returns: granted, remaining, more_in, reset_in, refused_for (-1: it passes), counted_at.
local limit, window, grain = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cost, extra, mode, counted_at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local stored = redis.call('GET', KEYS[1])
local before = stored and cmsgpack.unpack(stored) or {now}
-- After a step back of the server's clock, time stands still for the entries: each keeps its age.
local back = math.max(0, before[1] - now)
local log, total = {now}, 0
for i = 2, #before, 2 do
  local at, count = math.min(before[i] - back, now + grain), before[i + 1]
  if at + window > now and count > 0 then
    log[#log + 1] = at
    log[#log + 1] = count
    total = total + count
  end
end

-- The time when `units` fit.
local function time_of(units)
  local left = total
  for i = 2, #log, 2 do
    left = left - log[i + 1]
    if left + units <= limit then return log[i] + window end
  end
  return now
end

local granted, refused_for = 0, -1
if mode == 1 then
  for i = 2, #log, 2 do
    if log[i] == counted_at then
      granted = math.min(cost, log[i + 1])
      log[i + 1] = log[i + 1] - granted
      total = total - granted
      break
    end
  end
elseif mode == 2 or total + cost <= limit then
  granted = cost
  if extra > 0 then
    granted = granted + math.min(extra, math.floor((limit - total - cost) / 8))
  end
else
  refused_for = math.max(1, time_of(cost) - now)
end

if granted > 0 then
  if mode ~= 1 then
    counted_at = math.ceil(now / grain) * grain
    total = total + granted
    if #log > 1 and log[#log - 1] >= counted_at then
      counted_at = log[#log - 1]
      log[#log] = log[#log] + granted
    else
      log[#log + 1] = counted_at
      log[#log + 1] = granted
    end
  end
  local keep = (log[#log - 1] or now) + window - now
  redis.call('SET', KEYS[1], cmsgpack.pack(log), 'PX', string.format('%.0f', math.ceil(keep / 1000) + 1))
end

local more_in, reset_in = 0, 0
if #log > 1 then
  reset_in = log[#log - 1] + window - now
  more_in = (total <= limit and log[2] + window or time_of(1)) - now
end
return {granted, math.max(0, limit - total), math.max(0, more_in), reset_in, refused_for, counted_at}
