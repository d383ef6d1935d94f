// Make the calls that stdin lists with Stripe's SDK for Node.js, and print what came of each.
const Stripe = require("stripe");

const asked = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const { protocol, hostname, port } = new URL(asked.address);
const config = { protocol: protocol.replace(":", ""), host: hostname, port, maxNetworkRetries: asked.retries };

(async () => {
  const told = [];
  for (const call of asked.calls) {
    const stripe = new Stripe(call.as, config);
    try {
      const invoice = await (call.create
        ? stripe.invoices.create(call.create, call.key ? { idempotencyKey: call.key } : {})
        : stripe.invoices.retrieve(told.at(-1).id));
      told.push({ id: invoice.id, status: invoice.status, customer: invoice.customer });
    } catch (error) {
      if (!(error instanceof Stripe.errors.StripeError)) throw error;
      told.push({
        error: error.type,
        status: error.statusCode,
        param: error.param ?? null,
        request: error.requestId,
        message: error.message,
      });
    }
  }
  console.log(JSON.stringify(told));
})();
