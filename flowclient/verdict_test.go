package flowclient

import (
	"errors"
	"testing"
	"time"

	"example.com/flow"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

func statusWith(code codes.Code, details ...protoadapt.MessageV1) *status.Status {
	st, err := status.New(code, "text").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return st
}

func movedTo(epoch string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: "SESSION_MOVED", Domain: "example.com/flow", Metadata: map[string]string{"epoch": epoch}}
}

func retryIn(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
}

func TestVerdictIsTheFirstRowThatFits(t *testing.T) {
	told := func(st *status.Status) outcome { return outcome{status: st, epoch: true, held: 3} }
	refused := func(st *status.Status) outcome { return outcome{status: st, held: 3} }
	failed := func(o outcome) outcome { o.failed = 7; return o }
	goAway := status.New(codes.Unavailable, `closing transport due to: EOF, received prior goaway: code: NO_ERROR, debug data: "max_age"`)
	calm := status.New(codes.Unavailable, `closing transport due to: EOF, received prior goaway: code: ENHANCE_YOUR_CALM`)
	for _, c := range []struct {
		name  string
		o     outcome
		step  step
		err   error // stepEnd: what the error is
		delay time.Duration
	}{
		// No sessions.
		{"OK without an epoch", outcome{}, stepEnd, ErrNoSessions, 0},
		{"messages and another's header", outcome{status: statusWith(codes.Unavailable, retryIn(1)), doubtful: true}, stepEnd, ErrNoSessions, 0},
		{"messages and another's header, moved", outcome{status: statusWith(codes.FailedPrecondition, movedTo("4")), doubtful: true}, stepEnd, flow.ErrSessionMoved, 0},
		{"messages, another's header and no answer", outcome{own: errAnswerTimeout, doubtful: true}, stepEnd, ErrNoSessions, 0},
		{"messages and another's header, and an epoch", outcome{epoch: true, doubtful: true}, stepRestart, nil, 0},
		{"Unimplemented", refused(statusWith(codes.Unimplemented)), stepEnd, ErrNoSessions, 0},
		{"Unimplemented of a server with sessions", told(statusWith(codes.Unimplemented)), stepEnd, statusWith(codes.Unimplemented).Err(), 0},
		{"Unimplemented of a message", failed(told(statusWith(codes.Unimplemented))), stepAsk, nil, 0},
		{"a refusal is not ErrNoSessions", refused(statusWith(codes.Unavailable)), stepBackOff, nil, 0},

		// The session has moved.
		{"a higher epoch", refused(statusWith(codes.FailedPrecondition, movedTo("4"))), stepEnd, flow.ErrSessionMoved, 0},
		{"a higher epoch, with RetryInfo", refused(statusWith(codes.FailedPrecondition, movedTo("4"), retryIn(1))), stepEnd, flow.ErrSessionMoved, 0},
		{"a higher epoch, Aborted", told(statusWith(codes.Aborted, movedTo("4"))), stepEnd, flow.ErrSessionMoved, 0},
		{"any epoch, for a claim", outcome{status: statusWith(codes.FailedPrecondition, movedTo("1"))}, stepEnd, flow.ErrSessionMoved, 0},
		{"no epoch, FailedPrecondition", told(statusWith(codes.FailedPrecondition, movedTo(""))), stepEnd, flow.ErrSessionMoved, 0},
		{"its own epoch", told(statusWith(codes.Aborted, movedTo("3"))), stepRestart, nil, 0},
		{"no epoch, Aborted", told(statusWith(codes.Aborted, movedTo("x"))), stepRestart, nil, 0},
		{"its own epoch, with RetryInfo", told(statusWith(codes.Aborted, movedTo("3"), retryIn(1))), stepWait, nil, 1},

		// RetryInfo.
		{"RetryInfo", told(statusWith(codes.Unavailable, retryIn(time.Second))), stepWait, nil, time.Second},
		{"RetryInfo of 0", told(statusWith(codes.ResourceExhausted, retryIn(0))), stepWait, nil, 0},
		{"RetryInfo and flow-failed", failed(told(statusWith(codes.ResourceExhausted, retryIn(time.Second)))), stepWait, nil, time.Second},
		{"RetryInfo of a permanent code", refused(statusWith(codes.PermissionDenied, retryIn(time.Second))), stepWait, nil, time.Second},
		{"RetryInfo below 0", told(statusWith(codes.PermissionDenied, retryIn(-1))), stepEnd, statusWith(codes.PermissionDenied, retryIn(-1)).Err(), 0},

		// A message failed.
		{"flow-failed", failed(told(statusWith(codes.InvalidArgument))), stepAsk, nil, 0},
		{"flow-failed, Unavailable", failed(told(statusWith(codes.Unavailable))), stepAsk, nil, 0},
		{"flow-failed, Unauthenticated", failed(told(statusWith(codes.Unauthenticated))), stepAsk, nil, 0},
		{"OK with flow-failed", failed(told(nil)), stepRestart, nil, 0},

		// No failure.
		{"OK", told(nil), stepRestart, nil, 0},
		{"GOAWAY", told(goAway), stepRestart, nil, 0},
		{"GOAWAY for too many pings", told(calm), stepBackOff, nil, 0},

		// The connection.
		{"Unavailable", told(statusWith(codes.Unavailable)), stepBackOff, nil, 0},
		{"DeadlineExceeded", told(statusWith(codes.DeadlineExceeded)), stepBackOff, nil, 0},
		{"Canceled", told(statusWith(codes.Canceled)), stepBackOff, nil, 0},
		{"Aborted", told(statusWith(codes.Aborted)), stepBackOff, nil, 0},
		{"Internal", told(statusWith(codes.Internal)), stepBackOff, nil, 0},
		{"Unknown", told(statusWith(codes.Unknown)), stepBackOff, nil, 0},
		{"Unauthenticated", refused(statusWith(codes.Unauthenticated)), stepUnauthenticated, nil, 0},

		// Anything else.
		{"InvalidArgument", refused(statusWith(codes.InvalidArgument)), stepEnd, statusWith(codes.InvalidArgument).Err(), 0},
		{"NotFound", refused(statusWith(codes.NotFound)), stepEnd, statusWith(codes.NotFound).Err(), 0},
		{"AlreadyExists", refused(statusWith(codes.AlreadyExists)), stepEnd, statusWith(codes.AlreadyExists).Err(), 0},
		{"PermissionDenied", refused(statusWith(codes.PermissionDenied)), stepEnd, statusWith(codes.PermissionDenied).Err(), 0},
		{"ResourceExhausted", told(statusWith(codes.ResourceExhausted)), stepEnd, statusWith(codes.ResourceExhausted).Err(), 0},
		{"FailedPrecondition", refused(statusWith(codes.FailedPrecondition)), stepEnd, statusWith(codes.FailedPrecondition).Err(), 0},
		{"SESSION_MOVED of another domain", refused(statusWith(codes.FailedPrecondition, &errdetails.ErrorInfo{Reason: "SESSION_MOVED", Domain: "other"})), stepEnd, errAny, 0},
		{"OutOfRange", refused(statusWith(codes.OutOfRange)), stepEnd, statusWith(codes.OutOfRange).Err(), 0},
		{"DataLoss", refused(statusWith(codes.DataLoss)), stepEnd, statusWith(codes.DataLoss).Err(), 0},
		{"a code that does not exist", refused(statusWith(99)), stepEnd, statusWith(99).Err(), 0},

		// What the Sender did itself.
		{"no header", outcome{own: errHeaderTimeout, status: statusWith(codes.Canceled)}, stepBackOff, nil, 0},
		{"no answer", outcome{own: errAnswerTimeout, status: statusWith(codes.Canceled), epoch: true}, stepRestart, nil, 0},
		{"settled ahead", outcome{own: errSettledAhead, status: statusWith(codes.Canceled), epoch: true}, stepRestart, nil, 0},
		{"Resume cancelled", outcome{own: errNotWanted, status: statusWith(codes.Canceled)}, stepRestart, nil, 0},
		{"a message that can't be encoded", outcome{unsent: true, status: statusWith(codes.Internal), epoch: true}, stepEnd, errAny, 0},
	} {
		v := judge(c.o)
		switch {
		case v.step != c.step || v.delay != c.delay:
			t.Errorf("%s: step %d after %v, want %d after %v", c.name, v.step, v.delay, c.step, c.delay)
		case c.err == nil && v.err != nil && v.step != stepUnauthenticated, c.err != nil && v.err == nil:
			t.Errorf("%s: %v, want %v", c.name, v.err, c.err)
		case c.err != nil && c.err != errAny && !errors.Is(v.err, c.err):
			t.Errorf("%s: %v, want %v", c.name, v.err, c.err)
		case c.o.status.Code() != codes.OK && v.err != nil && status.Code(v.err) != c.o.status.Code():
			t.Errorf("%s: the error has the code %v", c.name, status.Code(v.err))
		}
	}
}

var errAny = errors.New("any")

func TestBackoffDoublesUpToTheMost(t *testing.T) {
	for _, c := range []struct {
		first, most time.Duration
		random      float64
		want        []time.Duration
	}{
		{100, 1000, 1, []time.Duration{100, 200, 400, 800, 1000, 1000}},
		{100, 1000, 0, []time.Duration{50, 100, 200, 400, 500, 500}},
		{100, 100, 0.5, []time.Duration{75, 75}},
		{1, 1 << 62, 1, nil},
	} {
		b := backoff{first: c.first, most: c.most, random: func() float64 { return c.random }}
		for i, want := range c.want {
			if got := b.next(); got != want {
				t.Errorf("%v to %v: delay %d is %v, want %v", c.first, c.most, i+1, got, want)
			}
		}
		last := b.first
		for range 200 {
			d := b.next()
			if d <= 0 || d > c.most || d < last/2 {
				t.Fatalf("%v to %v: %v after %v", c.first, c.most, d, last)
			}
			last = d
		}
		b.reset()
		if got := b.next(); got > c.first {
			t.Errorf("%v after a reset", got)
		}
	}
}

func TestPacing(t *testing.T) {
	p := pacing{backoff: backoff{first: 100, most: 1000, random: func() float64 { return 1 }}}
	want := func(what string, got, want time.Duration) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	want("the first restart", p.restart(), 0)
	want("the first wait", p.wait(7), 7)
	want("a restart without progress", p.restart(), 100)
	want("a wait without progress", p.wait(7), 200)
	want("a longer wait without progress", p.wait(5000), 5000)
	p.look(1)
	want("a restart after progress", p.restart(), 0)
	want("a wait after progress", p.wait(7), 7)
	want("a restart without progress", p.restart(), 100)

	if _, again := p.unauthenticated(); !again {
		t.Error("not tried again")
	}
	if _, again := p.unauthenticated(); again {
		t.Error("tried again twice")
	}
	p.look(2)
	if _, again := p.unauthenticated(); !again {
		t.Error("not tried again after progress")
	}
}
