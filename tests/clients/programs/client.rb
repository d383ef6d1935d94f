# Make the calls that stdin lists with Stripe's SDK for Ruby, and print what came of each.
require "json"
require "stripe"

asked = JSON.parse($stdin.read)
Stripe.max_network_retries = asked["retries"]

told = []
asked["calls"].each do |call|
  client = Stripe::StripeClient.new(call["as"], api_base: asked["address"])
  options = call["key"] ? { idempotency_key: call["key"] } : {}
  begin
    invoice = if call["create"]
                client.v1.invoices.create(call["create"], options)
              else
                client.v1.invoices.retrieve(told.last[:id])
              end
    told << { id: invoice.id, status: invoice.status, customer: invoice.customer }
  rescue Stripe::StripeError => e
    told << {
      error: e.class.name,
      status: e.http_status,
      param: e.respond_to?(:param) ? e.param : nil,
      request: e.request_id,
      message: e.error.message,
    }
  end
end
puts JSON.generate(told)
