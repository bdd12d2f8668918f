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

	next   int // the message of the batch that is looked at next
	making int // the one that the codec was last called for
	sent   []sentMessage
	made   [2]*outgoing
}

// sentMessage is a message that was made to be sent.
type sentMessage struct {
	index   int // in the batch
	subject string
}

// batchStream is a stream, or a session, of which messages are in a batch.
type batchStream struct {
	name   string // for the ids of its messages
	end    int    // no message of it is sent from this index of the batch on
	failed bool   // one of its messages has failed: the later ones are not attempted
	last   int    // 1 + the index in sent of its last message that is said to be stored
}

// streamKey is what messages of one stream have in common: their session, or else their context.
type streamKey struct {
	session flow.SessionID
	ctx     context.Context
}

func newStoring[T any](g *Gateway[T], batch []flow.Message[T], errs []error) *storing[T] {
	s := &storing[T]{
		Gateway: g, batch: batch, errs: errs, of: make([]int, len(batch)),
		sent: make([]sentMessage, 0, len(batch)), made: [2]*outgoing{newOutgoing(), newOutgoing()},
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
			s.streams = append(s.streams, batchStream{name: s.nameOf(key), end: len(batch)})
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

// checkSessions ends the streams of those sessions that this process may not store for, before their first messages. The
// bucket is waited for as long as one answer may take, however many it is asked for.
func (s *storing[T]) checkSessions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.pub.patience)
	defer cancel()
	checked := 0 // streams are numbered as their first messages are
	for i, m := range s.batch {
		if at := s.of[i]; at == checked {
			checked++
			if err := s.check(ctx, m.Session()); err != nil {
				s.refuse(i, err)
			}
		}
	}
}

// refuse has message i fail, and no later one of its stream be sent.
func (s *storing[T]) refuse(i int, err error) {
	s.errs[i], s.streams[s.of[i]].end = err, i
}

// prepare makes what is sent of the next message that can be; nil if there is none. A batch is made while it is sent: the
// servers would wait while all of it is made before.
func (s *storing[T]) prepare() (*nats.Msg, error) {
	for s.next < len(s.batch) {
		i := s.next
		s.next++
		if i >= s.streams[s.of[i]].end {
			continue
		}
		m, err := s.message(i, len(s.sent))
		if err != nil {
			s.refuse(i, unfitError(err))
			continue
		}
		s.sent = append(s.sent, sentMessage{i, m.Subject})
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
		m, err := s.message(s.sent[sent].index, sent)
		sent++
		return m, cmp.Or(err, s.stopped())
	}
}

// message makes what is sent of message i of the batch, as the nth. It is good until the next but one is made.
func (s *storing[T]) message(i, nth int) (*nats.Msg, error) {
	m, made := &s.batch[i], s.made[nth%len(s.made)]
	s.making = i
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
	// What is too old soon would be so before the servers have answered: a call must not end with errStopped without a stop.
	fence, until, ok := fences.fence(session.ID, time.Now().Add(fences.good/2))
	if !ok {
		asked := time.Now()
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
		s.errs[s.sent[stored].index] = unfitError(err)
	case stored == 0 && err != nil:
		refused = storeError(err)
	}
	doubts := make([]error, len(s.streams))
	if stored > 0 && s.topic.Replicas > 1 {
		doubts = s.confirm(ctx, stored)
	}
	sent := 0
	for i := range s.batch {
		switch {
		case sent == stored || s.sent[sent].index != i:
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
//
// The codec is the caller's, and may panic or exit its goroutine when a part of the batch is sent: that is the failure of the
// message that it was called for and of no other. So it is called on another goroutine than Store, whose end would be the
// failure of all, and the rest is sent with what was sent before, which the servers know by its ids.
func (s *storing[T]) send(ctx context.Context) (stored int, err error) {
	for {
		crash := isolated(func() { stored, err = s.attempt(ctx) })
		if crash == nil {
			return stored, err
		}
		s.refuse(s.making, flow.Permanent(crash))
		s.next, s.sent = 0, s.sent[:0]
	}
}

// attempt is send, unless the codec crashes.
func (s *storing[T]) attempt(ctx context.Context) (stored int, err error) {
	stored, err = s.pub.store(ctx, s.prepare)
	if n := unfitNumber(err); n > stored+1 { // it was refused before those in front of it were answered
		var again error
		if stored, again = s.pub.store(ctx, s.again(n-1)); again != nil {
			err = again
		}
	}
	return stored, err
}

var isolation = flow.NewEngine(func(_ context.Context, m flow.Message[func()]) error {
	m.Value()
	return nil
}, flow.RetryOptions{})

// isolated calls fn on a goroutine of its own and waits for it. It returns the panic or the runtime.Goexit that fn has ended
// with, as flow knows it: the client is not told of it, and an Observer is.
func isolated(fn func()) error {
	err := isolation.Execute(context.Background(), flow.Message[func()]{Value: fn})
	if f, ok := errors.AsType[*flow.Failure](err); ok {
		return f.Err
	}
	return nil
}

// confirm asks for the last message of each stream among the first that were sent, so many of which are said to be stored.
// If that is stored, so are those before. It returns for each stream nil, or why it is not stored for certain.
func (s *storing[T]) confirm(ctx context.Context, stored int) []error {
	for k, m := range s.sent[:stored] {
		s.streams[s.of[m.index]].last = k + 1
	}
	asked := make([]*nats.Msg, 0, len(s.streams))
	of := make([]int, 0, len(s.streams))
	for at, stream := range s.streams {
		if stream.last == 0 {
			continue
		}
		last := s.sent[stream.last-1]
		m := nats.NewMsg(last.subject)
		m.Header[headerID] = []string{s.id(last.index).String()}
		asked, of = append(asked, m), append(of, at)
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
