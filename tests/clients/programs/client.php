<?php
// Make the calls that stdin lists with Stripe's SDK for PHP, and print what came of each.
require "vendor/autoload.php";

$asked = json_decode(stream_get_contents(STDIN), true);
\Stripe\Stripe::setMaxNetworkRetries($asked["retries"]);

$told = [];
foreach ($asked["calls"] as $call) {
    $stripe = new \Stripe\StripeClient(["api_key" => $call["as"], "api_base" => $asked["address"]]);
    $options = $call["key"] ? ["idempotency_key" => $call["key"]] : [];
    try {
        $invoice = $call["create"] === null
            ? $stripe->invoices->retrieve(end($told)["id"])
            : $stripe->invoices->create($call["create"], $options);
        $told[] = ["id" => $invoice->id, "status" => $invoice->status, "customer" => $invoice->customer];
    } catch (\Stripe\Exception\ApiErrorException $error) {
        $told[] = [
            "error" => (new ReflectionClass($error))->getShortName(),
            "status" => $error->getHttpStatus(),
            "param" => $error->getError()?->param,
            "request" => $error->getRequestId(),
            "message" => $error->getMessage(),
        ];
    }
}
echo json_encode($told);
