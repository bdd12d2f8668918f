package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
)

// upload is one stream of records, over as many calls as it takes. It keeps what it has sent in a call until that call
// has ended: only then is it known what is stored.
type upload struct {
	c       *client
	next    <-chan *pb.Record
	backlog []*pb.Record // to send before what comes next
	sent    []*pb.Record // in the call under way
	limit   *rate.Limiter
	wait    *backoff.ExponentialBackOff
}

const (
	maxFruitless = 30 // calls that stored nothing, one after the other, until the client gives up
	minPace      = 20 // records/s
)

func newUpload(c *client, next <-chan *pb.Record) *upload {
	wait := backoff.NewExponentialBackOff() // with jitter
	wait.InitialInterval, wait.MaxInterval = 10*time.Millisecond, time.Second
	return &upload{c: c, next: next, limit: rate.NewLimiter(rate.Inf, 1), wait: wait}
}

// run sends everything. A call that ended early, but may go better next time, is followed by another with the rest.
func (u *upload) run(ctx context.Context) error {
	for fruitless := 0; ; {
		start := time.Now()
		stored, err := u.call(ctx)
		if err == nil {
			return nil
		}
		if fruitless++; stored > 0 {
			fruitless = 0
			u.wait.Reset()
		}
		kind := flow.ClassifyFailure(err)
		passing := kind == flow.FailureBackpressure || kind == flow.FailureShutdown ||
			kind == flow.FailureHandlerError && status.Code(err) == codes.Unavailable
		if !passing || fruitless == maxFruitless || ctx.Err() != nil {
			return err
		}
		if kind == flow.FailureBackpressure {
			u.slowDown(float64(len(u.sent)) / time.Since(start).Seconds())
		}
		select {
		case <-time.After(max(u.wait.NextBackOff(), retryInfo(err))):
		case <-ctx.Done():
			return err
		}
		if err := u.c.await(ctx, serverWait); err != nil {
			return err
		}
		u.c.resumed.Add(1)
	}
}

// call is one Upload call. It returns how many of its records were stored; what was not is in the backlog again.
func (u *upload) call(ctx context.Context) (stored int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := u.c.api.Upload(ctx)
	if err != nil {
		return 0, err // nothing was sent
	}
	u.sent = u.sent[:0]
	receipt := new(pb.Receipt)
	answer := make(chan error, 1) // the server may answer before all is sent, and while there is nothing to send
	done := make(chan struct{})
	go func() {
		defer close(done)
		answer <- stream.RecvMsg(receipt)
	}()

	if err = u.send(ctx, stream, answer); err == nil && receipt.GetStored() != uint64(len(u.sent)) {
		return 0, fmt.Errorf("the server stored %d records of %d", receipt.GetStored(), len(u.sent))
	}
	if err != nil {
		cancel() // a trailer may be read when nobody receives any more
		<-done
	}
	if err == nil || len(u.sent) == 0 {
		return len(u.sent), err
	}
	progress, ok := flow.ProgressFromTrailer(stream.Trailer())
	if !ok { // a connection that broke brings no trailer
		return 0, fmt.Errorf("it is not known which records are stored, so none can be sent again: %w", noStatus{err})
	}
	rest := slices.Collect(flow.Rest(progress, slices.Values(u.sent)))
	u.backlog = append(rest, u.backlog...)
	return len(u.sent) - len(rest), err
}

// send sends the backlog and what comes next until there is no more, or the server has answered: its answer is returned.
func (u *upload) send(ctx context.Context, stream pb.Ingest_UploadClient, answer <-chan error) error {
	for {
		var r *pb.Record
		again := len(u.backlog) > 0
		if again {
			r, u.backlog = u.backlog[0], u.backlog[1:]
		} else {
			more := false
			select {
			case r, more = <-u.next:
			case err := <-answer:
				return err
			}
			if !more {
				_ = stream.CloseSend() // always nil
				return <-answer
			}
		}
		u.sent = append(u.sent, r)
		u.c.sent.Add(1)
		if !again {
			u.c.begun.Add(1)
		}
		if err := u.limit.Wait(ctx); err != nil {
			return <-answer // ctx has ended, and the call with it
		}
		if err := stream.Send(r); errors.Is(err, io.EOF) {
			return <-answer
		} else if err != nil { // the record can't be sent at all
			return err
		}
		if l := u.limit.Limit(); l != rate.Inf {
			u.limit.SetLimit(l + 0.2) // a fifth more each second, as l of them are sent in one
		}
	}
}

// slowDown halves the pace; the first time it was as fast as it could.
func (u *upload) slowDown(pace float64) {
	if l := u.limit.Limit(); l != rate.Inf {
		pace = float64(l)
	}
	u.limit.SetLimit(rate.Limit(max(pace/2, minPace)))
	u.c.note("the server refused a record: going on with %.0f/s", float64(u.limit.Limit()))
}

// retryInfo is how long the server asks to wait.
func retryInfo(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// noStatus keeps an error's text and hides its status: whoever looks for one must not take the call for one that can be
// followed by another.
type noStatus struct{ err error }

func (e noStatus) Error() string { return e.err.Error() }
