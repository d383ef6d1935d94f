// Make the calls that stdin lists with Stripe's SDK for Go, and print what came of each.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"

	"github.com/stripe/stripe-go/v86"
)

type asked struct {
	Address string
	Retries int64
	Calls   []struct {
		As     string
		Key    *string
		Create *struct {
			Customer     *string
			AutoAdvance  *bool `json:"auto_advance"`
			Description  *string
			Metadata     map[string]string
			AccountTaxes []*string `json:"account_tax_ids"`
			CustomFields []struct{ Name, Value *string } `json:"custom_fields"`
			TransferData *struct{ Destination *string } `json:"transfer_data"`
		}
	}
}

func main() {
	var ask asked
	if err := json.NewDecoder(os.Stdin).Decode(&ask); err != nil {
		log.Fatal(err)
	}
	backends := stripe.NewBackendsWithConfig(&stripe.BackendConfig{
		URL:               stripe.String(ask.Address),
		MaxNetworkRetries: stripe.Int64(ask.Retries),
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull},
	})
	var told []map[string]any
	for _, call := range ask.Calls {
		client := stripe.NewClient(call.As, stripe.WithBackends(backends))
		var invoice *stripe.Invoice
		var err error
		if call.Create == nil {
			invoice, err = client.V1Invoices.Retrieve(context.TODO(), told[len(told)-1]["id"].(string), nil)
		} else {
			params := &stripe.InvoiceCreateParams{
				Customer:      call.Create.Customer,
				AutoAdvance:   call.Create.AutoAdvance,
				Description:   call.Create.Description,
				Metadata:      call.Create.Metadata,
				AccountTaxIDs: call.Create.AccountTaxes,
			}
			for _, field := range call.Create.CustomFields {
				params.CustomFields = append(params.CustomFields,
					&stripe.InvoiceCreateCustomFieldParams{Name: field.Name, Value: field.Value})
			}
			if transfer := call.Create.TransferData; transfer != nil {
				params.TransferData = &stripe.InvoiceCreateTransferDataParams{Destination: transfer.Destination}
			}
			if call.Key != nil {
				params.SetIdempotencyKey(*call.Key)
			}
			invoice, err = client.V1Invoices.Create(context.TODO(), params)
		}
		var refused *stripe.Error
		switch {
		case errors.As(err, &refused):
			told = append(told, map[string]any{
				"error":   string(refused.Type),
				"status":  refused.HTTPStatusCode,
				"param":   refused.Param,
				"request": refused.RequestID,
				"message": refused.Msg,
			})
		case err != nil:
			log.Fatal(err)
		default:
			told = append(told, map[string]any{
				"id": invoice.ID, "status": string(invoice.Status), "customer": invoice.Customer.ID,
			})
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		log.Fatal(err)
	}
}
