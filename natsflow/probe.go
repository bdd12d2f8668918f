package natsflow

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
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
	// Under the publisher's lock.
	answers []probeAnswer
	missing int // so many are not answered
}

type probeAnswer int

const (
	probeOpen     probeAnswer = iota
	probeStored               // it has a place in the stream
	probeInFlight             // it may get one, or not
	probeUnknown              // it has none, or got it longer ago than the stream knows its ids
	probeRefused              // the server could not say
)

const probePause = 20 * time.Millisecond // before those that are in process are asked for again

// neverLast is the number of a message that no stream comes to: 2^62.
const neverLast = "4611686018427387904"

var (
	errInFlight  = errors.New("the stream's leader has proposed it to the other servers, which have not taken it")
	errNotStored = errors.New("the stream's leader no longer knows it")
)

// confirm returns, for each message of a list, nil if it is stored and why it is not, or not known to be. Messages that are
// on their way are asked for again for as long as the publisher is patient. It returns early when ctx ends.
func (p *publisher) confirm(ctx context.Context, list []*nats.Msg) []error {
	errs := make([]error, len(list))
	open := make([]int, len(list)) // indexes of those to ask for
	for i := range list {
		open[i] = i
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.patience, errNoProgress)
	defer cancel()
	for {
		answers, err := p.probe(ctx, list, open)
		var again []int
		for j, i := range open {
			switch answers[j] {
			case probeStored:
				errs[i] = nil
			case probeUnknown:
				errs[i] = errNotStored
			case probeInFlight:
				errs[i] = errInFlight
				again = append(again, i)
			default:
				errs[i] = cmp.Or(errs[i], err, errNoProgress) // what was said before says more
				again = append(again, i)
			}
		}
		if open = again; len(open) == 0 {
			return errs
		}
		select {
		case <-ctx.Done():
			return errs
		case <-time.After(probePause):
		}
	}
}

// probe asks once for each message of list that which has the index of. It waits for a part of the publisher's patience: a
// question or an answer may be lost, and is to be asked for again.
func (p *publisher) probe(ctx context.Context, list []*nats.Msg, which []int) ([]probeAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.patience/4, errNoProgress)
	defer cancel()
	q := &probe{answers: make([]probeAnswer, len(which)), missing: len(which)}
	e, err := p.begin(q.take)
	if err != nil {
		return q.answers, err
	}
	defer p.end(e)
	for j, i := range which {
		m := nats.NewMsg(list[i].Subject)
		m.Header[headerID] = list[i].Header[headerID]
		m.Header[jetstream.ExpectedLastSeqHeader] = []string{neverLast}
		if err = p.ask(e, strconv.Itoa(j), m); err != nil {
			break
		}
	}
	for err == nil {
		p.mu.Lock()
		missing := q.missing
		p.mu.Unlock()
		if missing == 0 {
			break
		}
		select {
		case <-e.changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(q.answers), err
}

// errCodeInFlight is the server's JSStreamDuplicateMessageConflict, which the client library has no name for.
const errCodeInFlight jetstream.ErrorCode = 10158

func (q *probe) take(tail string, m *nats.Msg) {
	j := numbered(tail)
	if j < 0 || j >= len(q.answers) || q.answers[j] != probeOpen {
		return
	}
	q.answers[j] = answerOf(m)
	q.missing--
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
