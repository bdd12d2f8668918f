package flow

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// RetryOptions control the further tries of a message whose handler returned an error. While a message waits for its
// next try it keeps its key's place and gives up its slot.
type RetryOptions struct {
	// MaxAttempts counts all tries of a message, the first included, as in gRPC's retryPolicy. 0 and 1 mean no retry.
	MaxAttempts int
	// Backoff is the delay before the second try. 0 means none.
	Backoff time.Duration
	// MaxBackoff caps every delay. 0 means uncapped.
	MaxBackoff time.Duration
	// Multiplier is what each delay is multiplied by to give the next. 0 means 1: constant.
	Multiplier float64
	// Jitter, from 0 to 1, makes each delay random between (1-Jitter) times itself and itself.
	Jitter float64
	// AttemptTimeout cancels an attempt's context after so long, with cause ErrAttemptTimeout. A handler that ignores
	// it keeps its slot and its key; nil after it is success. 0 means none.
	AttemptTimeout time.Duration
	// Retryable says which errors are worth another try; it must be safe for concurrent use. nil means: all but those
	// marked by Permanent and the codes InvalidArgument, NotFound, AlreadyExists, PermissionDenied, Unauthenticated,
	// FailedPrecondition, OutOfRange, Unimplemented and DataLoss. Permanent beats it.
	Retryable func(error) bool
	// Budget limits retries over the whole Flow when much fails. The zero value is no limit.
	Budget RetryBudget
}

// RetryBudget is gRPC's retryThrottling (gRFC A6) over the Flow: it starts with MaxTokens tokens, a failed attempt takes
// one, a success gives TokenRatio back, and at or below half of MaxTokens nothing is retried.
type RetryBudget struct {
	MaxTokens  float64 // 0: no budget
	TokenRatio float64
}

func (o RetryOptions) validate() error {
	finite := func(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }
	switch {
	case o.MaxAttempts < 0:
		return invalid("Retry.MaxAttempts", o.MaxAttempts, "must not be negative")
	case o.Backoff < 0:
		return invalid("Retry.Backoff", o.Backoff, "must not be negative")
	case o.MaxBackoff < 0:
		return invalid("Retry.MaxBackoff", o.MaxBackoff, "must not be negative")
	case o.MaxBackoff > 0 && o.MaxBackoff < o.Backoff:
		return invalid("Retry.MaxBackoff", o.MaxBackoff, "must not be below Backoff, which is "+o.Backoff.String())
	case !finite(o.Multiplier) || o.Multiplier != 0 && o.Multiplier < 1:
		return invalid("Retry.Multiplier", o.Multiplier, "must be 0 or at least 1, and finite")
	case !(o.Jitter >= 0 && o.Jitter <= 1):
		return invalid("Retry.Jitter", o.Jitter, "must be from 0 to 1")
	case o.AttemptTimeout < 0:
		return invalid("Retry.AttemptTimeout", o.AttemptTimeout, "must not be negative")
	case !finite(o.Budget.MaxTokens) || o.Budget.MaxTokens < 0:
		return invalid("Retry.Budget.MaxTokens", o.Budget.MaxTokens, "must not be negative, and must be finite")
	case !finite(o.Budget.TokenRatio) || o.Budget.TokenRatio < 0:
		return invalid("Retry.Budget.TokenRatio", o.Budget.TokenRatio, "must not be negative, and must be finite")
	case o.Budget.TokenRatio > 0 && o.Budget.MaxTokens == 0:
		return invalid("Retry.Budget.TokenRatio", o.Budget.TokenRatio, "needs MaxTokens")
	}
	return nil
}

// ErrAttemptTimeout is the context's cause in an attempt that took longer than RetryOptions.AttemptTimeout.
var ErrAttemptTimeout = errors.New("flow: the attempt's time is over")

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks err as not worth another try; errors.Is and errors.As still see it. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// Engine runs the handler: it recovers panics and retries. It is safe for concurrent use. It keeps no order and holds
// no slot: that is the [Gate]'s.
type Engine[T any] struct {
	handler Handler[T]
	retry   RetryOptions
	budget  *budget // nil: none
}

// NewEngine returns an engine for handler. It panics on a nil handler and on impossible options, with the text that
// [New] would return.
func NewEngine[T any](handler Handler[T], retry RetryOptions) *Engine[T] {
	if handler == nil {
		mustBeValid(errNilHandler)
	}
	mustBeValid(retry.validate())
	e := &Engine[T]{handler: handler, retry: retry}
	if retry.Budget.MaxTokens > 0 {
		e.budget = newBudget(retry.Budget)
	}
	return e
}

// Execute runs m through the handler until it succeeds or is not tried again, and waits between the tries. It sets
// m.Attempt. The result is nil or a *Failure: FailureHandlerError, FailureContextCancelled when ctx has ended, or
// FailureInternal for a panic or runtime.Goexit. The handler runs on a goroutine of its own, so that a Goexit in it
// ends neither the caller nor the wait.
func (e *Engine[T]) Execute(ctx context.Context, m Message[T]) error {
	m.Attempt = 0
	err := isolated(func() error { return e.tries(ctx, &m) })
	if err == nil {
		return nil
	}
	f, ok := err.(*Failure)
	if !ok {
		f = &Failure{Kind: FailureInternal, Err: err}
	}
	f.Seq, f.Key, f.Attempts, f.Value = m.Seq, m.Key, m.Attempt, m.Value
	return f
}

// tries is Execute without the guard: its error is nil or a *Failure.
func (e *Engine[T]) tries(ctx context.Context, m *Message[T]) error {
	for {
		if ctx.Err() != nil {
			return contextFailure(ctx)
		}
		m.Attempt++
		err := e.attempt(ctx, *m)
		if err == nil {
			return nil
		}
		if endedBy(ctx, err) {
			return &Failure{Kind: FailureContextCancelled, Err: err}
		}
		delay, again := e.again(err, m.Attempt)
		if !again {
			return &Failure{Kind: FailureHandlerError, Err: err}
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			f := contextFailure(ctx)
			f.Err = &contextError{f.Err, err}
			return f
		}
	}
}

// attempt calls the handler once. It lets panics through.
func (e *Engine[T]) attempt(ctx context.Context, m Message[T]) error {
	if e.budget == nil {
		return e.call(ctx, m)
	}
	success := false
	defer func() { e.budget.count(success) }() // also of a panic or a Goexit, which are failed attempts as well
	err := e.call(ctx, m)
	success = err == nil
	return err
}

func (e *Engine[T]) call(ctx context.Context, m Message[T]) error {
	if e.retry.AttemptTimeout <= 0 {
		return e.handler(ctx, m)
	}
	return e.timed(ctx, m)
}

// timed calls the handler with AttemptTimeout.
func (e *Engine[T]) timed(ctx context.Context, m Message[T]) error {
	ctx, cancel := context.WithTimeoutCause(ctx, e.retry.AttemptTimeout, ErrAttemptTimeout)
	defer cancel()
	return e.handler(ctx, m)
}

// endedBy says whether err, returned under ctx, is ctx's end: only the stream's own context decides that.
func endedBy(ctx context.Context, err error) bool {
	if ctx.Err() == nil {
		return false
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Cause(ctx)) ||
		status.Code(err) == codes.Canceled || status.Code(err) == codes.DeadlineExceeded
}

// again decides whether a message that failed with err in its n-th attempt is tried again, and after what delay.
func (e *Engine[T]) again(err error, n int) (time.Duration, bool) {
	if n >= e.retry.MaxAttempts || !e.retry.worthRetrying(err) || e.budget != nil && e.budget.spent() {
		return 0, false
	}
	return e.retry.delay(err, n), true
}

func (o *RetryOptions) worthRetrying(err error) bool {
	if _, marked := errors.AsType[*permanentError](err); marked {
		return false
	}
	if o.Retryable != nil {
		return o.Retryable(err)
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.DataLoss:
		return false
	}
	return true
}

// delay is the time before the try after the n-th: exponential, capped, jittered, and not shorter than a RetryInfo in
// err's status asks for, as far as the cap allows.
func (o *RetryOptions) delay(err error, n int) time.Duration {
	d := float64(o.Backoff)
	if o.Multiplier > 1 {
		d *= math.Pow(o.Multiplier, float64(n-1))
	}
	limit := float64(math.MaxInt64)
	if o.MaxBackoff > 0 {
		limit = float64(o.MaxBackoff)
	}
	d = min(d, limit)
	if o.Jitter > 0 {
		d *= 1 - o.Jitter*rand.Float64()
	}
	d = min(max(d, float64(askedDelay(err))), limit)
	if d >= math.MaxInt64 { // as a float it may be one more than an int64 holds
		return math.MaxInt64
	}
	return time.Duration(d)
}

func askedDelay(err error) time.Duration {
	st, ok := status.FromError(err)
	if !ok {
		return 0
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().CheckValid() == nil {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// budget holds tokens as float64 bits.
type budget struct {
	opts   RetryBudget
	tokens atomic.Uint64
}

func newBudget(o RetryBudget) *budget {
	b := &budget{opts: o}
	b.tokens.Store(math.Float64bits(o.MaxTokens))
	return b
}

func (b *budget) count(success bool) {
	for {
		old := b.tokens.Load()
		t := math.Float64frombits(old)
		if success {
			t = min(t+b.opts.TokenRatio, b.opts.MaxTokens)
		} else {
			t = max(t-1, 0)
		}
		now := math.Float64bits(t)
		if now == old || b.tokens.CompareAndSwap(old, now) { // full stays full without a write to the shared line
			return
		}
	}
}

func (b *budget) spent() bool {
	return math.Float64frombits(b.tokens.Load()) <= b.opts.MaxTokens/2
}
