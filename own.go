package flow

import "context"

// ownOrder is a caller's own resolver, which a stream asks beside its lanes: when a message's local turn has come, and
// before it takes a slot. There is a goroutine for each message that asks, since to ask may block.
type ownOrder struct {
	OrderingResolver
	ctx context.Context // of those who ask: a shutdown ends it before the stream's
	end context.CancelFunc
}

func newOwnOrder(ctx context.Context, r OrderingResolver) *ownOrder {
	o := &ownOrder{OrderingResolver: r}
	o.ctx, o.end = context.WithCancel(ctx)
	return o
}

// ask gets m's turn from a caller's own resolver, as a carrier of m, and queues m with it.
func (s *stream[T]) ask(m *message[T]) error {
	c := &carrier[T]{s: s, m: m}
	if s.ctx.Err() != nil { // as in attempt: a turn that a cancelled handler left is of no use any more
		m.cutShort(s.cutKind())
		return c.run()
	}
	release, err := s.askOwn(m)
	m.release = release
	if err == nil {
		s.mu.Lock()
		over := s.over.Load()
		if over {
			m.cutShort(s.cutKindLocked())
		} else {
			s.pushLocked(m)
			s.startLocked()
		}
		s.mu.Unlock()
		if over {
			return c.run()
		}
		return nil
	}
	switch {
	case panicked(err):
		m.refuse(FailureInternal, err)
	case s.ctx.Err() != nil:
		m.refuse(FailureContextCancelled, contextFailure(s.ctx).Err)
	case s.over.Load(): // the shutdown ended the wait
		m.cutShort(s.cutKind())
	default:
		f := orderFailure(context.Background(), err, m.key)
		m.refuse(f.Kind, f.Err)
	}
	return c.run()
}

// askOwn calls the resolver.
func (s *stream[T]) askOwn(m *message[T]) (release ReleaseFunc, err error) {
	err = isolated(func() (err error) {
		release, err = s.own.Wait(s.own.ctx, m.key)
		return err
	})
	return release, err
}
