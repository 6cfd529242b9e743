-- The same requests over and over, as fast as wrk can: each argument is a body, with one body no Lua
-- runs while it sends. The counts are the last line.
local requests, turn = {}, 0
init = function(args)
  wrk.method = "POST"
  wrk.path = "/orders"
  wrk.headers["content-type"] = "application/json"
  wrk.body = args[1]
  for number, body in ipairs(args) do
    requests[number] = wrk.format(nil, nil, nil, body)
  end
  if #args > 1 then
    request = function()
      turn = turn % #requests + 1
      return requests[turn]
    end
  end
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%f,"refused":%d,"broken":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
