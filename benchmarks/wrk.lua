-- One-line orders of several skus in turn, without ids; the count of answers as the last line.
local bodies, turn = {}, 0
init = function() -- before it, wrk does not know the host
  for sku = 0, 9 do
    bodies[sku + 1] = wrk.format("POST", "/orders", {["content-type"] = "application/json"},
      '{"customer":"Funky Foods","lines":[{"sku":"SKU-' .. sku .. '","quantity":"1.5"}]}')
  end
end
request = function()
  turn = turn % 10 + 1
  return bodies[turn]
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%f,"refused":%d,"broken":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
