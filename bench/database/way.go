package main

import (
	"context"

	pb "google.golang.org/grpc/interop/grpc_testing"

	"example.com/flow"
)

type request = pb.StreamingInputCallRequest

// largest is how many rows a transaction has at most: NewBatch's default.
const largest = 256

// way is how rows come into a table.
type way struct {
	name string
	many bool // a transaction has many rows
	make func(d *database, insert func(context.Context, []row) error, opts flow.Options) (f *flow.Flow[*request], end func(), err error)
}

// ways are compared with the first.
var ways = []*way{
	{name: "one by one", make: oneByOne},
	{name: "group commit by hand", many: true, make: byHand},
	{name: "flow.NewBatch", many: true, make: inBatches},
}

// connections is how many transactions run at once.
func (w *way) connections(d *database) int {
	if w.many {
		return d.calls
	}
	return d.alone
}

func oneByOne(d *database, insert func(context.Context, []row) error, opts flow.Options) (*flow.Flow[*request], func(), error) {
	opts.Backpressure.Capacity = d.alone
	f, err := flow.New(func(ctx context.Context, m flow.Message[*request]) error {
		return insert(ctx, []row{rowOf(m.Value)})
	}, keyOf, opts)
	return f, func() {}, err
}

func byHand(d *database, insert func(context.Context, []row) error, opts flow.Options) (*flow.Flow[*request], func(), error) {
	g := newGroup(d.calls, insert)
	opts.Backpressure.Capacity = keys // more never run at once
	f, err := flow.New(func(ctx context.Context, m flow.Message[*request]) error {
		return g.insert(ctx, rowOf(m.Value))
	}, keyOf, opts)
	return f, g.close, err
}

func inBatches(d *database, insert func(context.Context, []row) error, opts flow.Options) (*flow.Flow[*request], func(), error) {
	opts.Backpressure.Capacity = d.calls
	f, err := flow.NewBatch(func(ctx context.Context, batch []flow.Message[*request], _ []error) error {
		rows := make([]row, len(batch))
		for i, m := range batch {
			rows[i] = rowOf(m.Value)
		}
		return insert(ctx, rows)
	}, keyOf, opts)
	return f, func() {}, err
}
