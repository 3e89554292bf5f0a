-- Replaces the dialogue with clamd. Rspamd 3.12's own fails at replies such as "stream: ... ERROR"
-- (a full disk, say) and lets the mail pass, and it remembers for an hour what was clean, whatever
-- signatures have come since. Here only "OK" for each content is clean.

local common = require "lua_scanners/common"
local tcp = require "rspamd_tcp"
local util = require "rspamd_util"

-- One content after the other, so that a mail of many parts doesn't fill clamd's queue.
local function scan(task, contents, index, rule)
  local content = contents[index]
  if not content then
    return
  end
  local function fail(why)
    common.yield_result(task, rule, why, 0.0, 'fail')
  end
  local upstream = rule.upstreams:get_upstream_round_robin()
  local address = upstream:get_addr()
  local sent = tcp.request {
    task = task,
    host = address:to_string(),
    port = address:get_port(),
    upstream = upstream,
    timeout = rule.timeout,
    data = {util.pack('c9 c1 >I4', 'zINSTREAM', '\0', #content), content, util.pack('>I4', 0)},
    stop_pattern = '\0',
    callback = function(err, data)
      local reply = tostring(err or data)
      local virus = not err and reply:match('^stream: (.+) FOUND')
      if not err and reply == 'stream: OK' then
        scan(task, contents, index + 1, rule)
      elseif virus and not virus:find('^Heuristics%.Limits%.Exceeded') then
        common.yield_result(task, rule, virus, 1.0)
      else
        fail(reply)
      end
    end,
  }
  if not sent then
    fail('no connection')
  end
end

require('lua_scanners/clamav').check = function(task, content, _digest, rule)
  -- The whole as clamd reads it, then the parts as Rspamd reads them: two parsers are harder to fool.
  local contents = {content}
  for _, part in ipairs(task:get_parts() or {}) do
    if not part:is_multipart() and #part:get_content() > 0 then
      contents[#contents + 1] = part:get_content()
    end
  end
  scan(task, contents, 1, rule)
end
