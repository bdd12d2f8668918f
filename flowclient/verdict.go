package flowclient

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"example.com/flow"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	errorDomain        = "example.com/flow" // of the server's ErrorInfo: the module path
	reasonSessionMoved = "SESSION_MOVED"
)

// outcome is all that decides what the end of a stream means.
type outcome struct {
	own    error          // why the Sender cancelled it; nil if it did not
	status *status.Status // the server's, or the connection's
	unsent bool           // the status is why a message could not be encoded
	epoch  bool           // the header or the trailers had a flow-epoch
	held   uint64         // the epoch that the stream was written under; 0: a claim that was not answered
	failed uint64         // flow-failed

	doubtful bool // a header came without a flow-epoch, after messages of a claim had been sent
}

// step is what the Sender does after a stream.
type step int

const (
	stepEnd             step = iota // end, with verdict.err
	stepRestart                     // open the next stream at once, or after a backoff if the last restart brought nothing
	stepWait                        // open it after verdict.delay, or after a backoff if that is longer and the last wait brought nothing
	stepBackOff                     // open it after a backoff
	stepUnauthenticated             // the same, once
	stepAsk                         // a message failed: ask Options.OnFailure
)

type verdict struct {
	step  step
	err   error
	delay time.Duration
}

// judge is the contract's table of what the end of a stream means: the first row that fits.
func judge(o outcome) verdict {
	// Messages that were sent to a server without sessions may have been run, and would be again.
	doubtful := o.doubtful && !o.epoch
	switch o.own {
	case errHeaderTimeout:
		return verdict{step: stepBackOff}
	case errAnswerTimeout:
		if doubtful {
			return verdict{err: fmt.Errorf("%w: %w", ErrNoSessions, o.own)}
		}
		return verdict{step: stepRestart}
	case errSettledAhead, errNotWanted:
		return verdict{step: stepRestart}
	}
	code := o.status.Code()
	d := readDetails(o.status)
	movedHigher := d.moved && (d.epoch > o.held || d.epoch == 0 && code == codes.FailedPrecondition)
	switch {
	case code == codes.OK && !o.epoch:
		return verdict{err: ErrNoSessions}
	case doubtful && !d.moved, code == codes.Unimplemented && !o.epoch: // with an epoch it is the handler's
		return verdict{err: fmt.Errorf("%w: %w", ErrNoSessions, o.status.Err())}
	case o.unsent:
		return verdict{err: fmt.Errorf("flowclient: a message can't be sent: %w", o.status.Err())}
	case movedHigher:
		return verdict{err: fmt.Errorf("%w: %w", flow.ErrSessionMoved, o.status.Err())}
	case d.retry:
		return verdict{step: stepWait, delay: d.delay}
	case code != codes.OK && o.failed > 0:
		return verdict{step: stepAsk}
	case code == codes.OK, d.moved, isGoAway(o.status):
		return verdict{step: stepRestart}
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.Internal, codes.Unknown:
		return verdict{step: stepBackOff}
	case codes.Unauthenticated:
		return verdict{step: stepUnauthenticated, err: o.status.Err()}
	}
	return verdict{err: o.status.Err()}
}

// isGoAway reports whether the server has closed the connection in good order, as it does when it has become old or is
// shut down. grpc-go says so in the status's text only.
func isGoAway(st *status.Status) bool {
	return st.Code() == codes.Unavailable && strings.Contains(st.Message(), "received prior goaway: code: NO_ERROR")
}

// details are those of a status that the Sender heeds.
type details struct {
	moved bool   // SESSION_MOVED
	epoch uint64 // its epoch; 0: absent or malformed
	retry bool   // RetryInfo
	delay time.Duration
}

func readDetails(st *status.Status) (d details) {
	for _, any := range st.Details() {
		switch info := any.(type) {
		case *errdetails.ErrorInfo:
			if info.GetReason() == reasonSessionMoved && info.GetDomain() == errorDomain {
				d.moved = true
				d.epoch, _ = strconv.ParseUint(info.GetMetadata()["epoch"], 10, 64)
			}
		case *errdetails.RetryInfo:
			if delay := info.GetRetryDelay(); delay.CheckValid() == nil && delay.AsDuration() >= 0 {
				d.retry, d.delay = true, delay.AsDuration()
			}
		}
	}
	return d
}

// failedActionOf is what becomes of a failed message without an Options.OnFailure.
func failedActionOf(code codes.Code) Action {
	switch code {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded:
		return Retry
	}
	return Stop
}
