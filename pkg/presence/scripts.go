package presence

import "github.com/redis/rueidis"

// The scripts make keys of people from a prefix: those have the hash tag of the
// keys that are named, so they stand in the same slot. What reports, claims and
// sweeps do to one key for many people is one call: a call costs more than what it
// does. unpack takes some thousand values: reportPeople, claimPeople and sweepPeople
// stay far below.
//
// Those that are run for many shards at once are sent whole each time: to load them
// first would take every node of a cluster, so that one that is away, were it only
// a replica, would end the heartbeat of all shards.

// openScript begins a lease.
//
// Keys: lease, leases. Arguments: lease, its TTL, the TTL of the roll.
var openScript = rueidis.NewLuaScript(`
redis.call('SET', KEYS[1], '0', 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1`)

// beatScript prolongs a lease; 0 if it has ended, or its last report is not the one
// that the gateway sent last: a failover has lost some.
//
// Keys: lease, leases, of. Arguments: the TTL of the lease, that of the roll, the
// number of the last report.
var beatScript = rueidis.NewLuaScriptNoSha(`
if redis.call('GET', KEYS[1]) ~= ARGV[3] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1`)

// closeScript ends a lease at once; Sweep does the rest.
//
// Keys: lease.
var closeScript = rueidis.NewLuaScript(`return redis.call('DEL', KEYS[1])`)

// reportScript writes down the devices of people, none as an empty text, and makes
// those due for whom that is new. It answers 1; -1 without a lease; 0 if the report
// before it is not the last one: then either that one was lost, by a failover or on
// the way, or this one comes late or twice and must not undo what came after it.
//
// Whoever has a device has not left: what was noted of that (l) goes, or a second
// leave within the grace would be dated back to the first.
//
// Keys: lease, of, due. Arguments: number, TTL of the lease, prefix of people,
// lease, TTL of the roll, then person and devices by turns.
//
//nolint:dupword // Lua ends its blocks by words
var reportScript = rueidis.NewLuaScript(`
local last = redis.call('GET', KEYS[1])
if not last then return -1 end
if tonumber(last) ~= tonumber(ARGV[1]) - 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local due, here, gone = {}, {}, {}
for i = 6, #ARGV, 2 do
  local user, devices = ARGV[i], ARGV[i+1]
  local key = ARGV[3] .. user
  if devices == '' then
    redis.call('HDEL', key, ARGV[4])
    gone[#gone+1] = user
    due[#due+1] = 0
    due[#due+1] = user
  else
    local was = redis.call('HMGET', key, ARGV[4], 'l')
    if was[1] ~= devices then
      redis.call('HSET', key, ARGV[4], devices)
      due[#due+1] = 0
      due[#due+1] = user
    end
    if was[2] then redis.call('HDEL', key, 'l') end
    here[#here+1] = user
    redis.call('PEXPIRE', key, ARGV[5])
  end
end
if #gone > 0 then redis.call('SREM', KEYS[2], unpack(gone)) end
if #here > 0 then redis.call('SADD', KEYS[2], unpack(here)) end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if #due > 0 then
  redis.call('ZADD', KEYS[3], unpack(due))
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
end
return 1`)

// claimScript takes people who are due, and makes them due again at a later moment
// in case whoever took them dies. It answers person by person: id, and the fields of
// its hash as they were; c is that somebody took this one before and did not settle.
// A hash that is there already ends by itself: the report that made it saw to that.
//
// Keys: due. Arguments: now, the later moment, how many, prefix of people, TTL of
// the roll.
var claimScript = rueidis.NewLuaScript(`
local users = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, tonumber(ARGV[3]))
local out, later = {}, {}
for _, user in ipairs(users) do
  local key = ARGV[4] .. user
  local fields = redis.call('HGETALL', key)
  out[#out+1] = {user, fields}
  redis.call('HSET', key, 'c', '1')
  if #fields == 0 then redis.call('PEXPIRE', key, ARGV[5]) end
  later[#later+1] = ARGV[2]
  later[#later+1] = user
end
if #later > 0 then redis.call('ZADD', KEYS[1], unpack(later)) end
return out`)

// settleScript ends claims. Who has changed since it was taken (0) stays due; who
// was taken by somebody else meanwhile is theirs.
//
// A hash never becomes empty before something new is in it: it would begin anew, without
// an end.
//
// Keys: due. Arguments: prefix of people, the moment of the claim, then by turns
// person, when to look again (empty: not), and since when nobody is connected.
//
//nolint:dupword // Lua ends its blocks by words
var settleScript = rueidis.NewLuaScript(`
local users, done = {}, {}
for i = 3, #ARGV, 3 do users[#users+1] = ARGV[i] end
local scores = redis.call('ZMSCORE', KEYS[1], unpack(users))
for i, user in ipairs(users) do
  local again, left = ARGV[3*i+1], ARGV[3*i+2]
  local key = ARGV[1] .. user
  local score = scores[i] and tonumber(scores[i])
  if score and score == tonumber(ARGV[2]) then
    if again == '' then
      redis.call('HDEL', key, 'c', 'l')
      done[#done+1] = user
    else
      redis.call('HSET', key, 'l', left)
      redis.call('HDEL', key, 'c')
      redis.call('ZADD', KEYS[1], again, user)
    end
  elseif score == 0 then
    redis.call('HDEL', key, 'c')
  end
end
if #done > 0 then redis.call('ZREM', KEYS[1], unpack(done)) end
return 1`)

// doubtScript makes people due, as if they had been taken before and not settled:
// whoever looks at them then tells what there is, also if nothing is new.
//
// Keys: due. Arguments: prefix of people, when, TTL of the roll, people.
var doubtScript = rueidis.NewLuaScriptNoSha(`
for i = 4, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not score or tonumber(score) > tonumber(ARGV[2]) then
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[i])
  end
  redis.call('HSET', ARGV[1] .. ARGV[i], 'c', '1')
  redis.call('PEXPIRE', ARGV[1] .. ARGV[i], ARGV[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`)

// sweepScript takes back what stands under leases that have ended, up to a number
// of people, and answers with how many those were.
//
// Keys: leases, due. Arguments: prefix of leases, prefix of their people, prefix of
// people, how many, TTL of the roll.
//
//nolint:dupword // Lua ends its blocks by words
var sweepScript = rueidis.NewLuaScript(`
local left = tonumber(ARGV[4])
local due = {}
for _, lease in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if left > 0 and redis.call('EXISTS', ARGV[1] .. lease) == 0 then
    local of = ARGV[2] .. lease
    for _, user in ipairs(redis.call('SPOP', of, left)) do
      redis.call('HDEL', ARGV[3] .. user, lease)
      due[#due+1] = 0
      due[#due+1] = user
      left = left - 1
    end
    if redis.call('SCARD', of) == 0 then redis.call('SREM', KEYS[1], lease) end
  end
end
if #due > 0 then
  redis.call('ZADD', KEYS[2], unpack(due))
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
return #due / 2`)
