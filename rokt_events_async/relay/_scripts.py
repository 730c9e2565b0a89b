"""The scripts that run on the server, each in one step.

Those that relieve the server may run while its memory is full (`allow-oom`); those that add to it may not. No
command is newer than Redis 7.0.
"""

from __future__ import annotations

from typing import Final

ACKNOWLEDGE: Final = """#!lua flags=allow-oom
local count = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
return count"""
MARK: Final = """#!lua flags=allow-oom
local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
for i = 4, #ARGV do
  local found = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #found > 0 then table.insert(claim, ARGV[i]) end
end
if #claim == 5 then return {} end
for _, part in ipairs({'RETRYCOUNT', ARGV[3], 'JUSTID'}) do table.insert(claim, part) end
return redis.call(unpack(claim))"""
TAKE: Final = """#!lua flags=allow-oom
if ARGV[2] ~= ARGV[3] and redis.call('EXISTS', KEYS[2]) == 1 then return {} end
local taken = {}
for i = 5, #ARGV do
  local found = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[3])
  if #found > 0 and found[1][3] >= tonumber(ARGV[4]) then
    local state = found[1][4] > 1 and 2 or 1
    local items = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', state)
    if #items > 0 and items[1] and items[1][2] then
      table.insert(taken, {state, items[1][1], items[1][2]})
    end
  end
end
return taken"""
BURY: Final = """#!lua flags=allow-oom
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'd', ARGV[3], 'f', ARGV[4])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1"""
REPLAY: Final = """#!lua
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], ARGV[1])
return 1"""
LEAVE: Final = """#!lua flags=allow-oom
local found = redis.call('GET', KEYS[1])
if found and string.sub(found, 1, #ARGV[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1"""
CREATE: Final = """#!lua flags=allow-oom
return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')"""
BEAT: Final = """#!lua flags=allow-oom
local key = ARGV[1] .. ARGV[2]
local found = redis.call('GET', key)
if found and string.sub(found, 1, #ARGV[3]) ~= ARGV[3] then return false end
redis.call('SET', key, ARGV[3] .. ARGV[4], 'PX', ARGV[5])
redis.call('SADD', KEYS[1], ARGV[2])
local alive, gone = {}, {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  table.insert(redis.call('EXISTS', ARGV[1] .. id) == 1 and alive or gone, id)
end
return {alive, gone}"""
FORGET: Final = """#!lua flags=allow-oom
if redis.call('EXISTS', ARGV[1] .. ARGV[2]) == 1 then return 0 end
for i = 2, #KEYS do
  local ok, found = pcall(redis.call, 'XPENDING', KEYS[i], ARGV[3], '-', '+', 1, ARGV[2])
  if ok and #found > 0 then return 0 end
end
for i = 2, #KEYS do pcall(redis.call, 'XGROUP', 'DELCONSUMER', KEYS[i], ARGV[3], ARGV[2]) end
redis.call('SREM', KEYS[1], ARGV[2])
return 1"""
