package flow

import (
	"context"
	"errors"
	"time"
)

// sessionCalls are the calls of a SessionStore. The store is the caller's: it may hang, panic or end its goroutine, and
// a stream waits for none of it longer than limit. A call that is not waited for any more may still be done: the version
// then says so.
type sessionCalls struct {
	store SessionStore
	limit time.Duration // of each call
}

var errStoreTimeout = errors.New("the session store has not answered in time")

// loaded is what Load returns.
type loaded struct {
	state   SessionState
	version uint64
}

func (c sessionCalls) load(ctx context.Context, id SessionID) (loaded, error) {
	return callStore(ctx, c.limit, func(ctx context.Context) (l loaded, err error) {
		l.state, l.version, err = c.store.Load(ctx, id)
		return l, err
	})
}

func (c sessionCalls) save(ctx context.Context, id SessionID, s SessionState, version uint64) (next uint64, err error) {
	return callStore(ctx, c.limit, func(ctx context.Context) (uint64, error) { return c.store.Save(ctx, id, s, version) })
}

// callStore calls fn on a goroutine of its own, and waits for it until ctx ends or limit is over.
func callStore[R any](ctx context.Context, limit time.Duration, fn func(context.Context) (R, error)) (r R, err error) {
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errStoreTimeout)
	defer cancel()
	type answer struct {
		r   R
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		a := answer{err: errGoexit}
		defer func() {
			if v := recover(); v != nil {
				a.err = newPanicError(v)
			}
			answers <- a
		}()
		a.r, a.err = fn(ctx)
	}()
	select {
	case a := <-answers:
		return a.r, a.err
	case <-ctx.Done():
		return r, context.Cause(ctx)
	}
}
