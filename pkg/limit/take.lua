-- One step of the generic cell rate algorithm on one key. The key holds the time, in microseconds, at which
-- everything that was taken is paid back. Time is passed in, so that every clock in the system is the
-- service's; the expiry only tidies up.
-- KEYS[1]  the key
-- ARGV     now, every (both in microseconds), burst, how many to take
-- Returns  1 taken or 0 refused; microseconds until it would be taken; how many more could be taken now
local now, every, burst, n = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local most = now + every * burst
local paid = tonumber(redis.call('GET', KEYS[1]) or now)
if paid < now then paid = now end
-- Of a replica whose clock was ahead: nobody waits longer for it than an empty bucket takes.
if paid > most then paid = most end
local after = paid + every * n
if after > most then return {0, after - most, math.floor((most - paid) / every)} end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
return {1, 0, math.floor((most - after) / every)}
