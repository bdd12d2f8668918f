package natsflow

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/flow"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// storing is one call of Gateway.Store. All messages of the call are one fast batch, whatever their streams: what is stored
// of it is a prefix, and so a prefix of each stream.
type storing[T any] struct {
	*Gateway[T]
	batch []flow.Message[T]
	errs  []error

	streams []batchStream
	of      []int // which of the streams each message is of

	list  []*nats.Msg // what is sent,
	which []int       // and which messages of the batch that is
	until time.Time   // when what is known of the sessions is too old to begin with; zero: never
}

// batchStream is a stream, or a session, of which messages are in a batch.
type batchStream struct {
	name   string // for the ids of its messages
	failed bool   // one of its messages has failed: the later ones are not attempted
	last   *nats.Msg
}

// streamKey is what messages of one stream have in common: their session, or else their context.
type streamKey struct {
	session flow.SessionID
	ctx     context.Context
}

func newStoring[T any](g *Gateway[T], batch []flow.Message[T], errs []error) *storing[T] {
	s := &storing[T]{Gateway: g, batch: batch, errs: errs, of: make([]int, len(batch))}
	found := map[streamKey]int{}
	var before streamKey
	for i, m := range batch {
		key := streamKey{session: m.Session().ID}
		if key.session == (flow.SessionID{}) {
			key.ctx = m.Context()
		}
		if i > 0 && key == before { // as most are
			s.of[i] = s.of[i-1]
			continue
		}
		at, ok := found[key]
		if !ok {
			at = len(s.streams)
			found[key] = at
			s.streams = append(s.streams, batchStream{name: s.nameOf(key)})
		}
		s.of[i], before = at, key
	}
	return s
}

// fail has message i fail, unless an earlier one of its stream has: then it was not attempted.
func (s *storing[T]) fail(i int, err error) {
	stream := &s.streams[s.of[i]]
	if stream.failed {
		err = flow.ErrNotAttempted
	}
	stream.failed = true
	s.errs[i] = err
}

// prepare makes what is sent of those messages that can be.
func (s *storing[T]) prepare(ctx context.Context) {
	s.list, s.which = make([]*nats.Msg, 0, len(s.batch)), make([]int, 0, len(s.batch))
	checked := make([]bool, len(s.streams))
	for i, m := range s.batch {
		at := s.of[i]
		if s.streams[at].failed {
			s.errs[i] = flow.ErrNotAttempted
			continue
		}
		if !checked[at] {
			checked[at] = true
			if err := s.check(ctx, m.Session()); err != nil {
				s.fail(i, err)
				continue
			}
		}
		stored, err := s.codec.message(s.topic, messageID{session: s.streams[at].name, number: m.Seq}, m.Value)
		if err == nil {
			err = s.fits(stored)
		}
		if err != nil {
			s.fail(i, unfitError(err))
			continue
		}
		s.list = append(s.list, stored)
		s.which = append(s.which, i)
	}
}

// check looks whether the session is still this process's, if it has not done so for long.
func (s *storing[T]) check(ctx context.Context, session flow.Session) error {
	if session.ID == (flow.SessionID{}) {
		return nil
	}
	fences := s.sessions.fences
	fence, until, ok := fences.fence(session.ID, time.Now())
	if !ok {
		asked := time.Now()
		ctx, cancel := context.WithTimeout(ctx, s.pub.patience)
		defer cancel()
		state, version, err := s.sessions.Load(ctx, session.ID)
		if err != nil {
			return storeError(err)
		}
		if fence = state.Fence; version == 0 { // it is kept in another store, or nowhere: nobody else has it here
			fence = session.Fence
		}
		until = asked.Add(fences.good)
	}
	if fence != session.Fence {
		return flow.Permanent(fmt.Errorf("natsflow: another gateway has the session: %w", flow.ErrSessionMoved))
	}
	if s.until.IsZero() || until.Before(s.until) {
		s.until = until
	}
	return nil
}

// store sends the list, and says of each message what has become of it.
func (s *storing[T]) store(ctx context.Context) {
	var stored int
	err := errStopped
	if s.until.IsZero() || time.Now().Before(s.until) {
		stored, err = s.send(ctx)
	}
	if stored > 0 && s.topic.Replicas > 1 {
		s.confirm(ctx, stored)
	}
	if stored == len(s.list) {
		return
	}
	if unfitNumber(err) == stored+1 {
		s.fail(s.which[stored], unfitError(err))
		stored++
	}
	refused := storeError(err)
	if stored > 0 {
		refused = flow.ErrNotAttempted // the next call, which comes at once, will see
	}
	for _, i := range s.which[stored:] {
		s.fail(i, refused)
	}
}

// send sends the list, and returns how many of it are said to be stored, and why not all.
func (s *storing[T]) send(ctx context.Context) (stored int, err error) {
	stored, err = s.pub.store(ctx, s.list)
	if n := unfitNumber(err); n > stored+1 { // it was refused before those in front of it were answered
		var again error
		if stored, again = s.pub.store(ctx, s.list[:n-1]); again != nil {
			err = again
		}
	}
	return stored, err
}

// confirm asks for the last message of each stream among the first n of the list. If that is stored, so are those before.
func (s *storing[T]) confirm(ctx context.Context, n int) {
	for j, i := range s.which[:n] {
		s.streams[s.of[i]].last = s.list[j]
	}
	asked := make([]*nats.Msg, 0, len(s.streams))
	at := make([]int, len(s.streams))
	for k, stream := range s.streams {
		if stream.last != nil {
			at[k] = len(asked)
			asked = append(asked, stream.last)
		}
	}
	found := s.pub.confirm(ctx, asked)
	for _, i := range s.which[:n] {
		if err := found[at[s.of[i]]]; err != nil {
			s.fail(i, storeError(err))
		}
	}
}

// fullRetry is when a client may send again what a full stream has refused.
const fullRetry = 5 * time.Second

// The server's JSStreamStoreFailedF, a bound is reached, and JSStreamHeaderExceedsMaximumErr: the client library has no
// names for them.
const (
	errCodeStoreFailed   jetstream.ErrorCode = 10077
	errCodeHeaderTooLong jetstream.ErrorCode = 10097
)

var errStopped = errors.New("the gateway was stopped for so long that its sessions may be another one's")

// unfitNumber is the number of the message of a batch that a server refuses for what it is, now and ever; 0 if that is not
// what has happened.
func unfitNumber(err error) int {
	var r *refusal
	if errors.As(err, &r) && (r.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum || r.ErrorCode == errCodeHeaderTooLong) {
		return r.number
	}
	return 0
}

// unfitError is what a client is told of a message that can't be stored, now and ever.
func unfitError(err error) error {
	return flow.Permanent(status.Error(codes.InvalidArgument, prefixed(err)))
}

// storeError is what a client is told when its message was not stored for a reason that passes.
func storeError(err error) error {
	st := status.New(codes.Unavailable, prefixed(err))
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == errCodeStoreFailed {
		st = status.New(codes.ResourceExhausted, prefixed(err))
		if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(fullRetry)}); err == nil {
			st = with
		}
	}
	return st.Err()
}

// prefixed is err's text, which says that it is this package's.
func prefixed(err error) string {
	const prefix = "natsflow: "
	if text := err.Error(); strings.HasPrefix(text, prefix) {
		return text
	}
	return prefix + err.Error()
}
