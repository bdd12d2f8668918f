package natsflow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"example.com/flow"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Gateway is what a gRPC server needs to store uploads in a Topic. The loop over the messages is flow's:
//
//	gw, err := natsflow.NewGateway(js, topic, natsflow.Proto((*pb.Reading).GetDevice))
//	f, err := flow.NewBatch(gw.Store, nil, flow.Options{
//		Sessions:     &flow.SessionOptions{Store: gw.Sessions()},
//		Backpressure: flow.BackpressureOptions{Capacity: 16},
//		Batch:        flow.BatchOptions{MaxMessages: 1024},
//	})
//
// With nil as the key, messages of a stream are stored in the order in which they were sent. One Gateway is enough for a
// process. It is safe for concurrent use, and has nothing to close: what it holds goes with the connection.
type Gateway[T any] struct {
	js       jetstream.JetStream
	topic    Topic
	codec    Codec[T]
	sessions *sessionStore
	pub      *publisher
	strangers

	mu       sync.Mutex
	verified bool // the stream is as topic says
}

// gatewayPatience is how long a gateway waits for the servers without hearing of any progress. It is longer than an election
// takes.
const gatewayPatience = 5 * time.Second

// NewGateway returns a Gateway that stores messages in t. It asks the servers nothing; until [Ensure] has made the topic,
// and while it is not what t says, Store fails.
//
// The connection should have nats.ReconnectBufSize(-1), so that nothing is sent when a connection is back that was
// published while there was none, and nats.MaxReconnects(-1), so that it does come back.
func NewGateway[T any](js jetstream.JetStream, t Topic, c Codec[T]) (*Gateway[T], error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	if js == nil {
		return nil, errors.New("natsflow: js must not be nil")
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	patience := min(gatewayPatience, t.Dedupe/4)
	return &Gateway[T]{
		js: js, topic: t, codec: c,
		pub:      &publisher{nc: js.Conn(), patience: patience},
		sessions: &sessionStore{js: js, bucket: t.sessionsBucket(), fences: &knownFences{good: t.Dedupe / 2}},
	}, nil
}

// Sessions keeps the sessions of flow's clients in the topic's bucket: an upload goes on at any gateway. One that nobody
// has saved for 30 days is forgotten.
func (g *Gateway[T]) Sessions() flow.SessionStore { return g.sessions }

// Store is a flow.BatchHandler: it stores a batch, and returns when it is stored by a majority of the topic's replicas. Of
// each stream a prefix is stored, in its order; a call that can't store all leaves the rest to the next one, and one that
// has stored nothing has each stream's first message fail: with Unavailable, or with ResourceExhausted and a RetryInfo if
// the stream is full. flow's Retry tries again in place; without it the stream ends and flowclient's Sender comes back.
//
// A message of a session is stored once, however often it is sent within Topic.Dedupe. Later than that, the session says
// what is stored: all but what was stored in the last SaveEvery before its gateway was killed, which would be stored again.
// A message without a session is stored once by its stream; a client that sends it again in another one has it stored again.
func (g *Gateway[T]) Store(ctx context.Context, batch []flow.Message[T], errs []error) error {
	s := newStoring(g, batch, errs)
	if err := g.verify(ctx); err != nil {
		for i := range batch {
			s.fail(i, storeError(err))
		}
		return nil
	}
	s.checkSessions(ctx)
	s.store(ctx)
	return nil
}

// verify compares the stream with the topic, until they were the same once.
func (g *Gateway[T]) verify(ctx context.Context) error {
	g.mu.Lock()
	verified := g.verified
	g.mu.Unlock()
	if verified {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.pub.patience)
	defer cancel()
	if err := g.topic.verify(ctx, g.js); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verified = true
	return nil
}

const (
	maxHeaders = 1<<16 - 1 // what a stream takes of headers, in bytes
	// deadLetterRoom is what the headers of a dead letter take beyond those of its message, at most: a message must not be
	// taken that can't become one, since its key would wait for ever.
	deadLetterRoom = 1024
)

// measured returns what servers measure of a message: the bytes of its headers, and those of headers and data.
func measured(m *nats.Msg) (headers, size int) {
	size = m.Size() - len(m.Subject) - len(m.Reply)
	return size - len(m.Data), size
}

// fits returns an error if no server would take the message, or not as a dead letter.
func (g *Gateway[T]) fits(m *nats.Msg) error {
	headers, size := measured(m)
	most := g.js.Conn().MaxPayload()
	switch {
	case headers > maxHeaders-deadLetterRoom:
		return fmt.Errorf("natsflow: the message's headers take %d bytes, of which its key is the most; the limit is %d", headers, maxHeaders-deadLetterRoom)
	case most > 0 && int64(size) > most-deadLetterRoom:
		return fmt.Errorf("natsflow: the message takes %d bytes with its headers; the server's max_payload is %d, of which %d are for a dead letter's",
			size, most, deadLetterRoom)
	}
	return nil
}

// strangers are the streams that have no session: each gets a name for the ids of its messages, for as long as it lives.
type strangers struct {
	mu    sync.Mutex
	names map[context.Context]string
}

// nameOf is what names a stream in the ids of its messages. A context that never ends is no stream's.
func (s *strangers) nameOf(stream streamKey) string {
	if stream.session != (flow.SessionID{}) {
		return stream.session.String()
	}
	ctx := stream.ctx
	if ctx.Done() == nil {
		return nuid.Next()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name, ok := s.names[ctx]
	if !ok {
		if s.names == nil {
			s.names = map[context.Context]string{}
		}
		name = nuid.Next()
		s.names[ctx] = name
		context.AfterFunc(ctx, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.names, ctx)
		})
	}
	return name
}
