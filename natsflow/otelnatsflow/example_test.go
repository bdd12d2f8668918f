package otelnatsflow_test

import (
	"context"
	"fmt"
	"log"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"example.com/flow/natsflow"
	"example.com/flow/natsflow/otelnatsflow"
)

// Two events, read as a collector would read them. A worker has t.Observer() as its WorkerOptions.Observer.
func Example() {
	reader := sdk.NewManualReader() // a service has an exporter here
	topic := natsflow.Topic{Name: "readings"}
	t := otelnatsflow.New(topic, otelnatsflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	o := natsflow.WorkerOptions{Observer: t.Observer()}

	o.Observer(natsflow.PartitionEvent{Kind: natsflow.EventClaimed, Partition: 7, Reason: natsflow.ReasonExpired})
	o.Observer(natsflow.PartitionEvent{Kind: natsflow.EventCommitted, Partition: 7, Took: time.Millisecond})

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		log.Fatal(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name != "natsflow.lease.claims" {
			continue
		}
		for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
			partition, _ := p.Attributes.Value("messaging.destination.partition.id")
			reason, _ := p.Attributes.Value("natsflow.claim.reason")
			fmt.Printf("%s: partition %s, %s: %d\n", m.Name, partition.AsString(), reason.AsString(), p.Value)
		}
	}
	// Output:
	// natsflow.lease.claims: partition 7, expired: 1
}

// A worker whose partitions are shown: what happens to those that it holds, and the state of all.
func ExampleTelemetry_Watch() {
	var w *natsflow.Worker[string] // natsflow.NewWorker made it, with t.Observer() in its options
	t := otelnatsflow.New(natsflow.Topic{Name: "readings"})
	watching, err := t.Watch(w)
	if err != nil {
		log.Fatal(err)
	}
	defer watching.Unregister()
}
