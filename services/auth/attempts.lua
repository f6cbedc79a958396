-- One step of attempts.go on one key, with the same rules. Time is passed in, so that every clock in
-- the system is the service's; the expiry only tidies up.
-- KEYS[1]  hash: start (ms, begin of the window), failed, open (attempts under way), opened (ms, newest of them)
-- ARGV     step (open | close), now, window, lease (ms), limit, failed (how many close adds; negative clears)
-- Returns  0 done, 1 refused, 2 refused only because of attempts under way; then how long to wait, in ms
local step, now, window, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local limit, add = tonumber(ARGV[5]), tonumber(ARGV[6])
local row = redis.call('HMGET', KEYS[1], 'start', 'failed', 'open', 'opened')
local start, failed = tonumber(row[1] or now), tonumber(row[2] or 0)
local open, opened = tonumber(row[3] or 0), tonumber(row[4] or 0)
if now - start >= window then start, failed = now, 0 end
if now - opened >= lease then open = 0 end
if step == 'open' then
  if failed >= limit then return {1, start + window - now} end
  if failed + open >= limit then return {2, 1000} end
  if failed == 0 then start = now end
  open, opened = open + 1, now
else
  if open > 0 then open = open - 1 end
  if add < 0 then failed = 0 else failed = failed + add end
end
redis.call('HSET', KEYS[1], 'start', start, 'failed', failed, 'open', open, 'opened', opened)
redis.call('PEXPIRE', KEYS[1], window + lease)
return {0, 0}
