package natsflow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fastBatch stores a list of messages by a fast batch of JetStream (ADR-50): messages go out without waiting for those
// before, and the server takes each only if it has taken the one before it. So what is stored of the list is always a
// prefix of it, whichever server dies or loses its leadership meanwhile. Messages that are published one by one, and again
// when they fail, are reordered by every change of leaders.
//
// It speaks the protocol itself. The publisher of orbit's jetstreamext waits for its whole timeout when the first message of
// a batch is refused, as all are that meet a full stream; it does not heed contexts; and it subscribes for each batch.
type fastBatch struct {
	// Under the publisher's lock.
	acked   int   // so many are said to be stored
	flow    int   // after so many messages the server answers; 0 before it has said so
	over    bool  // the server has told the outcome
	failure error // why it takes no more
}

const (
	// fastFlow is after how many messages of a batch the server is to tell how far it is. It asks for less when many batches
	// are open at once.
	fastFlow = 100
	// fastWindow is how many messages may be unanswered, over all batches of a publisher that are open: a batch has its share
	// of that, or twice what the server asks for if that is more. The server begins with one message a batch when there are
	// several, and its queue has room for 10,000.
	fastWindow = 512
)

// The operations of a fast batch, in the subject of its answers.
const (
	fastStart  = "0"
	fastAppend = "1"
	fastCommit = "2" // with the last message
	fastEnd    = "3" // behind the last message, without one
	fastPing   = "4"
)

var (
	errGap = errors.New("a message was lost on its way to the stream's leader")
	errCut = errors.New("the stream's leader has ended the batch early")
)

// store stores the messages that next returns until it returns nil, in their order, and returns how many of them the server
// says are stored: always a prefix. err is nil if and only if all are. Those that it doesn't say are stored may be all the
// same. It calls next as the server takes messages, one ahead of what it sends: the last message says that it is the last. So
// a message must stay as it is until the next but one is asked for.
//
// It returns early when ctx ends or next returns an error: then it sends no more messages. The server is told that the batch
// is over, also when next panics: it would keep it open for ten seconds, in which it asks all other batches to wait for each
// of their first messages. Where there is no connection to tell it by, it does.
//
// Of a message that was sent before, the server says that it is stored although it may be on its way only: see probe.
func (p *publisher) store(ctx context.Context, next func() (*nats.Msg, error)) (stored int, err error) {
	m, err := next()
	if m == nil || err != nil {
		return 0, err
	}
	b := &fastBatch{}
	e, err := p.begin(b.take)
	if err != nil {
		return 0, err
	}
	defer p.end(e)
	first := m.Subject // where pings go too
	sent, ended := 0, false
	defer func() {
		if sent > 0 && !ended {
			_ = p.ask(e, fastQuestion(sent+1, fastEnd), nats.NewMsg(first)) // its error is that there is no connection
		}
	}()
	patience := time.NewTimer(p.patience)
	defer patience.Stop()
	ping := time.NewTicker(p.patience / 4)
	defer ping.Stop()
	for {
		p.mu.Lock()
		state, share := *b, fastWindow/len(p.exchanges)
		p.mu.Unlock()
		if state.acked > stored {
			stored = min(state.acked, sent)
			patience.Reset(p.patience)
		}
		switch {
		case m == nil && stored == sent:
			ended = true
			return stored, nil
		case state.over:
			ended = true
			return stored, cmp.Or(state.failure, errCut)
		}
		before := sent
		for window := max(2*state.flow, share, 1); m != nil && sent-stored < window; sent++ {
			following, err := next()
			if err != nil {
				return stored, err
			}
			if err := p.ask(e, fastQuestion(sent+1, operationOf(sent, following == nil)), m); err != nil {
				return stored, err
			}
			m = following
		}
		if sent > before { // what next took is not the servers' time
			patience.Reset(p.patience)
		}
		select {
		case <-e.changed:
		case <-ping.C: // answers are lost with a connection
			if err := p.ask(e, fastQuestion(sent, fastPing), nats.NewMsg(first)); err != nil {
				return stored, err
			}
		case <-patience.C:
			if state.failure != nil {
				return stored, state.failure
			}
			return stored, errNoProgress
		case <-ctx.Done():
			return stored, context.Cause(ctx)
		}
	}
}

// fastQuestion is what a message of a batch adds to the subject of its answers: the flow, what happens at a gap, the number
// in the batch, the operation.
func fastQuestion(number int, operation string) string {
	b := make([]byte, 0, 32)
	b = strconv.AppendInt(b, fastFlow, 10)
	b = append(b, ".fail."...)
	b = strconv.AppendInt(b, int64(number), 10)
	b = append(b, '.')
	b = append(b, operation...)
	return string(append(b, ".$FI"...))
}

// operationOf is that of the i-th message of a batch.
func operationOf(i int, last bool) string {
	switch {
	case last:
		return fastCommit
	case i == 0:
		return fastStart
	}
	return fastAppend
}

// fastAnswer is what the server says of a batch: "ack", how far it is; "gap" and "err", that it takes no more; or, without
// a type, how it has ended.
type fastAnswer struct {
	Type     string              `json:"type"`
	Sequence int                 `json:"seq"` // ack: of the last message that is stored
	Messages int                 `json:"msgs"`
	Error    *jetstream.APIError `json:"error"`
	Count    int                 `json:"count"` // at the end: how many are stored
}

// refusal is a server's error about one message of a batch.
type refusal struct {
	number int // its place, from 1; 0 if that is not known
	*jetstream.APIError
}

func (r *refusal) Unwrap() error { return r.APIError }

// numberOf is the place of the message that is answered to that subject, as store has made it; 0 if it is none.
func numberOf(tail string) int {
	if parts := strings.Split(tail, "."); len(parts) == 5 {
		if n, err := strconv.Atoi(parts[2]); err == nil {
			return n
		}
	}
	return 0
}

// take takes an answer. Tail is the end of the subject of the message that it answers.
func (b *fastBatch) take(tail string, m *nats.Msg) {
	if nobodyAnswers(m) {
		b.over, b.failure = true, nats.ErrNoResponders
		return
	}
	var a fastAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		b.over, b.failure = true, fmt.Errorf("malformed answer %.100q: %w", m.Data, err)
		return
	}
	if a.Error != nil && b.failure == nil {
		b.failure = &refusal{numberOf(tail), a.Error}
	}
	switch a.Type {
	case "ack":
		b.acked, b.flow = max(b.acked, a.Sequence), max(a.Messages, 1)
	case "gap":
		if b.failure == nil {
			b.failure = errGap
		}
	case "err":
	default:
		b.over = true
		b.acked = max(b.acked, a.Count)
	}
}
