package natsflow

import (
	"cmp"
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
	of      []int     // which of the streams each message is of
	until   time.Time // when what is known of the sessions is too old; zero: never

	next  int   // the message of the batch that is looked at next
	which []int // those that were made to be sent
	made  [2]*outgoing
}

// batchStream is a stream, or a session, of which messages are in a batch.
type batchStream struct {
	name   string // for the ids of its messages
	closed bool   // no more of its messages is sent
	failed bool   // one of its messages has failed: the later ones are not attempted
	last   int    // 1 + the index of the last message that is said to be stored
}

// streamKey is what messages of one stream have in common: their session, or else their context.
type streamKey struct {
	session flow.SessionID
	ctx     context.Context
}

func newStoring[T any](g *Gateway[T], batch []flow.Message[T], errs []error) *storing[T] {
	s := &storing[T]{
		Gateway: g, batch: batch, errs: errs, of: make([]int, len(batch)),
		which: make([]int, 0, len(batch)), made: [2]*outgoing{newOutgoing(), newOutgoing()},
	}
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

// fail has message i fail, unless an earlier one of its stream has: then it was not attempted. Messages fail in their order.
func (s *storing[T]) fail(i int, err error) {
	stream := &s.streams[s.of[i]]
	if stream.failed {
		err = flow.ErrNotAttempted
	}
	stream.failed = true
	s.errs[i] = err
}

// checkSessions closes the streams of those sessions that this process may not store for.
func (s *storing[T]) checkSessions(ctx context.Context) {
	checked := 0 // streams are numbered as their first messages are
	for i, m := range s.batch {
		if at := s.of[i]; at == checked {
			checked++
			if err := s.check(ctx, m.Session()); err != nil {
				s.errs[i], s.streams[at].closed = err, true
			}
		}
	}
}

// prepare makes what is sent of the next message that can be; nil if there is none. A batch is made while it is sent: the
// servers would wait while all of it is made before.
func (s *storing[T]) prepare() (*nats.Msg, error) {
	for s.next < len(s.batch) {
		i := s.next
		s.next++
		stream := &s.streams[s.of[i]]
		if stream.closed {
			continue
		}
		m, err := s.message(i, len(s.which))
		if err != nil {
			s.errs[i], stream.closed = unfitError(err), true
			continue
		}
		s.which = append(s.which, i)
		return m, s.stopped()
	}
	return nil, s.stopped()
}

// again makes those that were sent once more: the first n.
func (s *storing[T]) again(n int) (next func() (*nats.Msg, error)) {
	sent := 0
	return func() (*nats.Msg, error) {
		if sent == n {
			return nil, s.stopped()
		}
		m, err := s.message(s.which[sent], sent)
		sent++
		return m, cmp.Or(err, s.stopped())
	}
}

// message makes what is sent of message i of the batch, as the nth. It is good until the next but one is made.
func (s *storing[T]) message(i, nth int) (*nats.Msg, error) {
	m, made := &s.batch[i], s.made[nth%len(s.made)]
	if err := s.codec.message(made, s.topic, s.id(i), m.Value); err != nil {
		return nil, err
	}
	return &made.Msg, s.fits(&made.Msg)
}

// id is that of message i of the batch.
func (s *storing[T]) id(i int) messageID {
	return messageID{session: s.streams[s.of[i]].name, number: s.batch[i].Seq}
}

// stopped returns an error when nothing more may be sent, since what is known of the sessions is too old. It is looked at
// before each message: the process may have been stopped at any time.
func (s *storing[T]) stopped() error {
	if !s.until.IsZero() && !time.Now().Before(s.until) {
		return errStopped
	}
	return nil
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

// store sends the batch, and says of each message what has become of it.
func (s *storing[T]) store(ctx context.Context) {
	stored, err := s.send(ctx)
	refused := flow.ErrNotAttempted // the next call, which comes at once, will see
	switch {
	case unfitNumber(err) == stored+1:
		s.errs[s.which[stored]] = unfitError(err)
	case stored == 0 && err != nil:
		refused = storeError(err)
	}
	doubts := make([]error, len(s.streams))
	if stored > 0 && s.topic.Replicas > 1 {
		doubts = s.confirm(ctx, s.which[:stored])
	}
	sent := 0
	for i := range s.batch {
		switch {
		case sent == stored || s.which[sent] != i:
			s.fail(i, cmp.Or(s.errs[i], refused))
		case doubts[s.of[i]] != nil:
			s.fail(i, storeError(doubts[s.of[i]]))
			sent++
		default:
			sent++
		}
	}
}

// send sends the batch, and returns how many of which are said to be stored, and why not all.
func (s *storing[T]) send(ctx context.Context) (stored int, err error) {
	stored, err = s.pub.store(ctx, s.prepare)
	if n := unfitNumber(err); n > stored+1 { // it was refused before those in front of it were answered
		var again error
		if stored, again = s.pub.store(ctx, s.again(n-1)); again != nil {
			err = again
		}
	}
	return stored, err
}

// confirm asks for the last message of each stream among those that are said to be stored. If that is stored, so are those
// before. It returns for each stream nil, or why it is not stored for certain.
func (s *storing[T]) confirm(ctx context.Context, which []int) []error {
	for _, i := range which {
		s.streams[s.of[i]].last = i + 1
	}
	asked := make([]*nats.Msg, 0, len(s.streams))
	of := make([]int, 0, len(s.streams))
	for k, stream := range s.streams {
		if stream.last == 0 {
			continue
		}
		m := nats.NewMsg(s.topic.subject(partitionOf(s.codec.Key(s.batch[stream.last-1].Value), s.topic.Partitions)))
		m.Header[headerID] = []string{s.id(stream.last - 1).String()}
		asked, of = append(asked, m), append(of, k)
	}
	doubts := make([]error, len(s.streams))
	for j, err := range s.pub.confirm(ctx, asked) {
		doubts[of[j]] = err
	}
	return doubts
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
