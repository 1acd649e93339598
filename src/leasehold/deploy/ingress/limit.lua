-- Counts a request's body while it passes and gives the request up above txn.limit bytes.
-- Only requests whose body has no length of its own come through here.
local Limit = {id = "body limit", flags = filter.FLT_CFG_FL_HTX}
Limit.__index = Limit

function Limit:new()
  return setmetatable({}, Limit)
end

function Limit:start_analyze(txn, channel)
  if not channel:is_resp() then filter.register_data_filter(self, channel) end
end

function Limit:http_headers(txn, message)
  if not message:is_resp() then self.left = txn:get_var("txn.limit") end
end

function Limit:http_payload(txn, message)
  if message:is_resp() then return end
  self.left = self.left - message:input()
  if self.left < 0 then txn:done() end
end

core.register_filter("body-limit", Limit, function(limit) return limit end)
