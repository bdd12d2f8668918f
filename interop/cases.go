package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// testCase is a row of the matrix.
type testCase struct {
	name string
	run  func(ctx context.Context, t *trial) error
}

// holdable are the cases that are also tried through a proxy that holds headers back.
var holdable = map[string]bool{"cut off": true}

var cases = []testCase{
	{"full upload", fullUpload},
	{"full upload (example)", fullUploadStored},
	{"handler failure", handlerFailure},
	{"HardReject", hardReject},
	{"shut down", shutDown},
	{"deadline", deadline},
	{"cancel", cancel},
	{"kill -9", kill9},
	{"restart and resume (example)", restart},
	{"cut off", cutOff},
	{"oversized", oversized},
	{"largest status", largest},
}

var keyed = flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}

// records are n of them, of five keys.
func records(n int) []*pb.Record {
	all := make([]*pb.Record, n)
	for i := range all {
		all[i] = record(uint64(i+1), "key-"+strconv.Itoa(i%5), "record "+strconv.Itoa(i+1))
	}
	return all
}

// fullUpload: everything is stored, in order, and the client knows.
func fullUpload(ctx context.Context, t *trial) error {
	const n = 300
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed}, &script{records: records(n)}, 0, nil)
	if err != nil {
		return err
	}
	err = expectation{committed: strconv.Itoa(n)}.differs(*saw)
	if !saw.blind && saw.Stored != n || e.sum.Succeeded != n {
		err = errors.Join(err, fmt.Errorf("the client's Receipt says %d, the server's Summary %+v, want %d", saw.Stored, e.sum, n))
	}
	return errors.Join(err, e.ended(flow.FailureNone, codes.OK))
}

// handlerFailure: the client, still sending, learns what failed and how far the server got.
func handlerFailure(ctx context.Context, t *trial) error {
	s := &script{records: records(8), then: trickle}
	for _, r := range s.records {
		r.Key = "one"
	}
	s.records[5].Text = textFail
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed}, s, 0, nil)
	if err != nil {
		return err
	}
	return errors.Join(
		expectation{code: codes.DataLoss, message: failText, reason: "HANDLER_ERROR", seq: "6", committed: "5"}.differs(*saw),
		e.ended(flow.FailureHandlerError, codes.DataLoss))
}

// hardReject: the second record finds the only slot taken; the client, which is silent if it can be, is told when to
// come again.
func hardReject(ctx context.Context, t *trial) error {
	s := &script{records: records(2), then: silence}
	if t.client.deaf {
		s.then = trickle
	}
	s.records[0].Text = textHold
	saw, e, err := t.call(ctx, flow.Options{
		Ordering:     keyed,
		Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
	}, s, 0, nil)
	if err != nil {
		return err
	}
	return errors.Join(
		expectation{code: codes.ResourceExhausted, message: "rejected: capacity exhausted", reason: "BACKPRESSURE", seq: "2",
			retry: true, committed: "0"}.differs(*saw),
		e.ended(flow.FailureBackpressure, codes.ResourceExhausted))
}

// shutDown: a stream that comes too late is refused, before anything of it has run.
func shutDown(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: trickle}
	svc, err := t.startService(flow.Options{Ordering: keyed})
	if err != nil {
		return err
	}
	if err := svc.flow.Shutdown(ctx); err != nil {
		return err
	}
	saw, e, err := t.callAt(ctx, svc, s, 0, nil)
	if err = errors.Join(err, svc.stop()); err != nil {
		return err
	}
	return errors.Join(
		expectation{code: codes.Unavailable, message: "the flow is shutting down", reason: "SHUTDOWN", retry: true,
			committed: "0"}.differs(*saw),
		e.ended(flow.FailureShutdown, codes.Unavailable))
}

// deadline: it ends the handlers too. Client and server both watch it. The server's gRPC then resets the stream, without
// status or trailers: a client that sees that first takes it for a cancellation, and nginx makes an internal error of it.
func deadline(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: trickle, deadline: time.Second}
	s.records[2].Text = textHold
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed}, s, 1, func(*process) error { return nil })
	if err != nil {
		return err
	}
	reset := codes.Canceled
	if t.route.proxy {
		reset = codes.Internal
	}
	if saw.Code != codes.DeadlineExceeded && saw.Code != reset {
		return fmt.Errorf("code %v (%q), want %v", saw.Code, saw.Message, codes.DeadlineExceeded)
	}
	if code := status.Code(e.err); code == codes.Canceled { // the client's reset was faster than the server's clock
		return e.ended(flow.FailureContextCancelled, codes.Canceled)
	}
	return e.ended(flow.FailureContextCancelled, codes.DeadlineExceeded)
}

// cancel: the client's own, of a call that is silent.
func cancel(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: silence}
	s.records[2].Text = textHold
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed}, s, 1, (*process).interrupt)
	if err != nil {
		return err
	}
	if saw == nil {
		return errors.New("the interrupt killed the client")
	}
	if saw.Code != codes.Canceled {
		return fmt.Errorf("code %v (%q), want %v", saw.Code, saw.Message, codes.Canceled)
	}
	return e.ended(flow.FailureContextCancelled, codes.Canceled)
}

// kill9: the server notices, and nothing is left.
func kill9(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: silence}
	s.records[2].Text = textHold
	_, e, err := t.call(ctx, flow.Options{Ordering: keyed}, s, 1, (*process).kill)
	if err != nil {
		return err
	}
	return e.ended(flow.FailureContextCancelled, codes.Canceled)
}

// oversized: a record that gRPC itself refuses, so there is neither flow's detail nor its trailer.
func oversized(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: trickle}
	s.records[2].Text = strings.Repeat("x", 5<<20)
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed}, s, 0, nil)
	if err != nil {
		return err
	}
	return errors.Join(
		expectation{code: codes.ResourceExhausted, message: "larger than max"}.differs(*saw),
		e.ended(flow.FailureInternal, codes.ResourceExhausted))
}

// largest: the longest text, details and list of unsettled messages that flow lets through still reach the client.
func largest(ctx context.Context, t *trial) error {
	const n = 2100 // every other one is unsettled: a byte each in the trailer
	s := &script{records: records(2*n + 1), then: trickle}
	for i, r := range s.records {
		r.Key = strconv.Itoa(i)
		if i%2 == 0 {
			r.Text = textHold
		}
	}
	s.records[2*n].Text = textLarge
	saw, e, err := t.call(ctx, flow.Options{Ordering: keyed, MaxPending: -1}, s, 0, nil)
	if err != nil {
		return err
	}
	err = errors.Join(
		expectation{code: codes.DataLoss, message: strings.Repeat("½", 256), reason: "LARGE", committed: "0"}.differs(*saw),
		e.ended(flow.FailureHandlerError, codes.DataLoss))
	if p, _, _ := saw.progress(); !saw.blind && (p.Settled(1) || !p.Settled(2) || !p.Settled(4000)) {
		err = errors.Join(err, fmt.Errorf("flow-progress-bin: settled 1, 2, 4000: %v, %v, %v; want no, yes, yes",
			p.Settled(1), p.Settled(2), p.Settled(4000)))
	}
	return err
}
