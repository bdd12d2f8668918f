package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// trial is one case with one client on one route.
type trial struct {
	rig    *rig
	shop   *workshop
	client *client
	route  route
}

// limit is how long a trial may take: what takes longer hangs.
const limit = 40 * time.Second

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

// call has the client make the call of s at a service with these options. Once `held` handlers stand still, act
// happens, if there is one. It returns what the client saw (nothing if act ended it) and how the Upload ended, after
// which nothing runs on the server.
func (t *trial) call(ctx context.Context, o flow.Options, s *script, held int, act func(*process) error) (*outcome, end, error) {
	svc, err := startService(t.rig.service, t.rig.serverCredentials(t.route), o)
	if err != nil {
		return nil, end{}, err
	}
	saw, e, err := t.callAt(ctx, svc, s, held, act)
	return saw, e, errors.Join(err, svc.stop())
}

func (t *trial) callAt(ctx context.Context, svc *service, s *script, held int, act func(*process) error) (*outcome, end, error) {
	p, err := t.client.start(ctx, t.rig, t.route, s)
	if err != nil {
		return nil, end{}, err
	}
	killed := false
	if act != nil {
		if err := svc.awaitHeld(ctx, held); err != nil {
			return nil, end{}, errors.Join(err, p.kill(), errors.New(p.output()))
		}
		if err := act(p); err != nil {
			return nil, end{}, err
		}
		select {
		case <-p.exited:
			killed = !p.cmd.ProcessState.Exited()
		default:
		}
	}
	var saw *outcome
	if !killed {
		all, err := p.wait(ctx)
		if err != nil {
			return nil, end{}, err
		}
		if len(all) != 1 {
			return nil, end{}, fmt.Errorf("the client made %d calls, want 1", len(all))
		}
		saw = &all[0]
	}
	e, err := svc.awaitEnd()
	if err != nil {
		return nil, end{}, fmt.Errorf("the server: %w", err)
	}
	return saw, e, nil
}

// ended says whether an Upload ended with this kind and code.
func (e end) ended(kind flow.FailureKind, code codes.Code) error {
	if flow.ClassifyFailure(e.err) != kind || status.Code(e.err) != code {
		return fmt.Errorf("the server's Upload ended with %w (%v), want %v (%v)", e.err, status.Code(e.err), kind, code)
	}
	return nil
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

// fullUploadStored: the same against the example server, with a look into its database.
func fullUploadStored(ctx context.Context, t *trial) error {
	const n = 1000
	return t.atExample(func(e *example) error {
		if err := e.start(ctx); err != nil {
			return err
		}
		s := &script{records: records(n)}
		p, err := t.client.start(ctx, t.rig, t.exampleRoute(), s)
		if err != nil {
			return err
		}
		all, err := p.wait(ctx)
		if err != nil {
			return err
		}
		saw := all[0]
		err = expectation{committed: strconv.Itoa(n)}.differs(saw)
		if !saw.blind && saw.Stored != n {
			err = errors.Join(err, fmt.Errorf("the Receipt says %d, want %d", saw.Stored, n))
		}
		return errors.Join(err, e.check(ctx, s.records))
	})
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
		expectation{code: codes.ResourceExhausted, message: "refused for pressure", reason: "BACKPRESSURE", seq: "2",
			retry: true, committed: "0"}.differs(*saw),
		e.ended(flow.FailureBackpressure, codes.ResourceExhausted))
}

// shutDown: a stream that comes too late is refused, before anything of it has run.
func shutDown(ctx context.Context, t *trial) error {
	s := &script{records: records(3), then: trickle}
	svc, err := startService(t.rig.service, t.rig.serverCredentials(t.route), flow.Options{Ordering: keyed})
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

// restart: the example server is shut down in the middle of an upload, and another one takes its place. The client sends
// it the rest, and every record is stored once.
func restart(ctx context.Context, t *trial) error {
	const n = 400
	return t.atExample(func(e *example) error {
		if err := e.start(ctx); err != nil {
			return err
		}
		s := &script{records: records(n), every: 2 * time.Millisecond, resume: true}
		p, err := t.client.start(ctx, t.rig, t.exampleRoute(), s)
		if err != nil {
			return err
		}
		if err := e.again(ctx, n/4); err != nil {
			return errors.Join(err, p.kill())
		}
		all, err := p.wait(ctx)
		if err != nil {
			return err
		}
		if t.client.once {
			if all, err = t.resume(ctx, all, s); err != nil {
				return err
			}
		}
		return errors.Join(resumed(all, n), e.check(ctx, s.records))
	})
}

// resumed says what is wrong with the calls of an upload of n records that a shutdown interrupted. The first was cut in
// the middle, the last stored the rest; between them there may be calls that the server refused on its way out.
func resumed(all []outcome, n int) error {
	if len(all) < 2 {
		return fmt.Errorf("the client made one call only: %+v", all)
	}
	var errs []error
	for i, saw := range all[:len(all)-1] {
		committed, err := strconv.Atoi(saw.Trailers["flow-committed"])
		if i == 0 && (err != nil || committed < n/4 || committed >= n) || i > 0 && committed != 0 {
			return fmt.Errorf("call %d committed %q, want some from %d to %d, and then none", i+1,
				saw.Trailers["flow-committed"], n/4, n-1)
		}
		errs = append(errs, expectation{code: codes.Unavailable, message: "the flow is shutting down", reason: "SHUTDOWN",
			retry: true, committed: strconv.Itoa(committed)}.differs(saw))
		n -= committed
	}
	return errors.Join(append(errs, expectation{committed: strconv.Itoa(n)}.differs(all[len(all)-1]))...)
}

// resume does what a user does who has a client that can't: it calls again, with the rest.
func (t *trial) resume(ctx context.Context, first []outcome, s *script) ([]outcome, error) {
	committed, err := strconv.Atoi(first[0].Trailers["flow-committed"])
	if err != nil {
		return nil, err
	}
	p, err := t.client.start(ctx, t.rig, t.exampleRoute(), &script{records: s.records[committed:]})
	if err != nil {
		return nil, err
	}
	second, err := p.wait(ctx)
	return append(first, second...), err
}

// again stops the server once so many records are stored, and starts another.
func (e *example) again(ctx context.Context, after uint64) error {
	for {
		n, err := e.stored(ctx, "interop")
		if err != nil {
			return err
		}
		if n >= after {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := e.stop(); err != nil {
		return err
	}
	return e.start(ctx)
}

// exampleRoute is the trial's route, to the example server.
func (t *trial) exampleRoute() route {
	to := t.route
	to.example = true
	return to
}

// atExample runs do with an example server, and stops that one well: with exit code 0.
func (t *trial) atExample(do func(*example) error) error {
	dir, err := os.MkdirTemp(t.rig.dir, "example")
	if err != nil {
		return err
	}
	e, err := newExample(t.rig, t.route, t.shop.example, filepath.Join(dir, "example.db"))
	if err != nil {
		return err
	}
	err = do(e)
	return errors.Join(err, e.close())
}
