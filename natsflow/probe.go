package natsflow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// probe asks for messages whether they are stored: on a majority, not only on their way to one.
//
// A fast batch leaves out messages whose ids the leader knows, and says of them that they are stored. But the leader knows
// an id as soon as it has proposed the message to the others. So one that has lost its majority, and does not know yet,
// takes a batch, says nothing of it, and says "stored" at once when the same batch comes again; what it has proposed is
// gone when another leads. (nats-server 2.15.3: TestRetryWithoutQuorumIsNotAcknowledged.) Nor does the batch tell which
// messages it left out.
//
// Of a message that is published by itself, the leader says what it knows: that it has it, under which sequence number, or
// that it is in process. A probe is such a message on a condition that no stream fulfils, which the server looks at later
// than at the id: one that is not known is refused. So a probe stores nothing, ever.
//
// It is for streams of several replicas. With one, a message is stored before the next one is looked at, and the server
// looks at the condition before it looks at the id.
type probe struct {
	list  []*nats.Msg // with subjects and ids
	round time.Duration

	// Under the publisher's lock.
	said    []probeAnswer // what was last said of each that says anything
	asked   []bool        // those for which an answer is out
	waiting int           // how many these are
}

type probeAnswer int

const (
	probeOpen     probeAnswer = iota // nothing was heard
	probeStored                      // it has a place in the stream
	probeInFlight                    // it may get one, or not
	probeUnknown                     // it has none, or got it longer ago than the stream knows its ids
	probeRefused                     // the server could not say
)

const probePause = 20 * time.Millisecond // before those that are in process are asked for again

// neverLast is the number of a message that no stream comes to: 2^62.
const neverLast = "4611686018427387904"

var (
	errInFlight  = errors.New("the stream's leader has proposed it to the other servers, which have not taken it")
	errNotStored = errors.New("the stream's leader no longer knows it")
)

// confirm returns, for each message of a list, nil if it is stored and why it is not, or not known to be. It asks again for
// those that are on their way, and for those of which nothing was heard for a part of the time for which the publisher is
// patient: a question or an answer may be lost. An answer is taken however late it comes. It returns early when ctx ends.
func (p *publisher) confirm(ctx context.Context, list []*nats.Msg) []error {
	q := &probe{list: list, round: p.patience / 4, said: make([]probeAnswer, len(list)), asked: make([]bool, len(list))}
	ctx, cancel := context.WithTimeoutCause(ctx, p.patience, errNoProgress)
	defer cancel()
	e, err := p.begin(q.take)
	if err != nil {
		return q.errors(err)
	}
	defer p.end(e)
	for {
		open := p.open(q)
		if len(open) == 0 {
			return q.errors(nil)
		}
		for _, i := range open {
			if err = p.ask(e, strconv.Itoa(i), q.question(i)); err != nil {
				break
			}
		}
		if err == nil {
			err = p.await(ctx, e, q)
		}
		select {
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			return q.errors(cmp.Or(err, context.Cause(ctx)))
		case <-time.After(probePause):
		}
	}
}

// open returns the indexes of those that must be asked for, and notes that they are.
func (p *publisher) open(q *probe) (open []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, said := range q.said {
		if said != probeStored && said != probeUnknown {
			open = append(open, i)
			q.asked[i] = true
		}
	}
	q.waiting = len(open)
	return open
}

// await blocks until all that was asked is answered, or for a round. Its error is the end of ctx.
func (p *publisher) await(ctx context.Context, e *exchange, q *probe) error {
	round := time.NewTimer(q.round)
	defer round.Stop()
	for {
		p.mu.Lock()
		waiting := q.waiting
		p.mu.Unlock()
		if waiting == 0 {
			return nil
		}
		select {
		case <-e.changed:
		case <-round.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// question asks for message i.
func (q *probe) question(i int) *nats.Msg {
	m := nats.NewMsg(q.list[i].Subject)
	m.Header[headerID] = q.list[i].Header[headerID]
	m.Header[jetstream.ExpectedLastSeqHeader] = []string{neverLast}
	return m
}

// errors returns why each is not stored. Of those of which nothing was said, err says why.
func (q *probe) errors(err error) []error {
	errs := make([]error, len(q.said))
	for i, said := range q.said {
		switch said {
		case probeStored:
		case probeUnknown:
			errs[i] = errNotStored
		case probeInFlight:
			errs[i] = errInFlight
		default:
			errs[i] = cmp.Or(err, errNoProgress)
		}
	}
	return errs
}

// errCodeInFlight is the server's JSStreamDuplicateMessageConflict, which the client library has no name for.
const errCodeInFlight jetstream.ErrorCode = 10158

// take takes an answer, under the publisher's lock. One that says nothing leaves what was said before.
func (q *probe) take(tail string, m *nats.Msg) {
	i := numbered(tail)
	if i < 0 || i >= len(q.said) {
		return
	}
	if q.asked[i] {
		q.asked[i] = false
		q.waiting--
	}
	if a := answerOf(m); a != probeRefused && q.said[i] != probeStored && q.said[i] != probeUnknown {
		q.said[i] = a
	}
}

func answerOf(m *nats.Msg) probeAnswer {
	var a struct {
		Sequence  uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	if nobodyAnswers(m) || json.Unmarshal(m.Data, &a) != nil {
		return probeRefused
	}
	switch {
	case a.Error == nil && a.Duplicate && a.Sequence > 0:
		return probeStored
	case a.Error == nil:
		return probeRefused
	}
	switch a.Error.ErrorCode {
	case errCodeInFlight:
		return probeInFlight
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return probeUnknown
	}
	return probeRefused
}
