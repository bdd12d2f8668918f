package natsflow

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/partition"
)

const (
	// A pull that the server has forgotten, or never got since it was not ready, shows by its missing heartbeats: the
	// client's defaults would let a partition stand still for 30 seconds.
	pullHeartbeat = time.Second
	pullExpiry    = 5 * time.Second

	readerOpen      = 2 * time.Second        // how long the creation of a consumer may take before it is tried again
	readerPause     = 100 * time.Millisecond // before it is tried again
	readerSilence   = 5 * time.Second        // after so long without a message the stream is asked whether there is one
	readerAbandoned = 30 * time.Second       // after so long without a reader the server forgets the consumer
)

// reader reads a partition of the stream in order, by an ordered consumer: it is in the server's memory, acknowledges
// nothing, and is made anew whenever something is wrong with it. It is used by one goroutine.
type reader[T any] struct {
	js        jetstream.JetStream
	topic     Topic
	codec     Codec[T]
	partition int
	last      uint64 // the position before the next message
	pullMax   int

	messages  jetstream.MessagesContext // nil: to be opened
	interrupt context.CancelFunc        // has Next of messages return, and ends the watch
	within    []jetstream.NextOpt       // the context that this ends
	read      atomic.Uint64             // last, for the watch
}

// Next implements partition.Source.
func (r *reader[T]) Next(ctx context.Context) (partition.Message[T], error) {
	for {
		if ctx.Err() != nil {
			r.close()
			return partition.Message[T]{}, ctx.Err()
		}
		if r.messages == nil {
			if err := r.open(ctx); err != nil {
				if errors.Is(err, errStreamIsOlder) {
					return partition.Message[T]{}, err
				}
				pause(ctx, readerPause)
			}
			continue
		}
		m, err := r.messages.Next(r.within...)
		if err != nil { // also at the end of ctx
			r.close()
			pause(ctx, readerPause)
			continue
		}
		md, err := m.Metadata()
		if err != nil || md.Sequence.Stream <= r.last { // not by an ordered consumer: look again from where it was right
			r.close()
			continue
		}
		r.last = md.Sequence.Stream
		r.read.Store(r.last)
		return r.parse(m, md), nil
	}
}

// pause blocks for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// errStreamIsOlder is what a partition stops with whose stream is not the one that its record is about.
var errStreamIsOlder = errors.New("the stream ends before what is settled of it: it was made anew, or comes from an old copy")

// open begins to read behind last.
func (r *reader[T]) open(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(ctx, readerOpen)
	defer cancel()
	stream, err := r.js.Stream(attempt, r.topic.Name)
	if err != nil {
		return err
	}
	if end := stream.CachedInfo().State.LastSeq; end < r.last {
		return fmt.Errorf("%w: it ends with %d, and up to %d all is settled", errStreamIsOlder, end, r.last)
	}
	consumer, err := r.js.OrderedConsumer(attempt, r.topic.Name, jetstream.OrderedConsumerConfig{
		FilterSubjects:    []string{r.topic.subject(r.partition)},
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       r.last + 1,
		InactiveThreshold: readerAbandoned,
		MaxResetAttempts:  1, // then Next returns, and it is opened again here, where ctx is heeded
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(
		jetstream.PullMaxMessages(r.pullMax), jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullHeartbeat))
	if err != nil {
		return err
	}
	r.messages = messages
	r.read.Store(r.last)
	within, interrupt := context.WithCancel(ctx)
	r.interrupt, r.within = interrupt, []jetstream.NextOpt{jetstream.NextContext(within)}
	go r.watch(within, interrupt)
	return nil
}

// watch interrupts Next when nothing comes though there is something. It is a goroutine of its own, so that a message costs
// no timer. It does not stop the messages: while the client library makes the consumer anew, within Next, that would stop
// the old one only, and Next would wait on.
func (r *reader[T]) watch(ctx context.Context, interrupt context.CancelFunc) {
	defer interrupt()
	tick := time.NewTicker(readerSilence)
	defer tick.Stop()
	for last := r.read.Load(); ; last = r.read.Load() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r.read.Load() == last && r.missed(ctx, last) && r.read.Load() == last {
			return
		}
	}
}

// missed reports whether the stream has a message behind last that should have come.
func (r *reader[T]) missed(ctx context.Context, last uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, readerOpen)
	defer cancel()
	stream, err := r.js.Stream(ctx, r.topic.Name)
	if err != nil {
		return false
	}
	if stream.CachedInfo().State.LastSeq < last {
		return true // open says what is wrong
	}
	_, err = stream.GetMsg(ctx, last+1, jetstream.WithGetMsgSubject(r.topic.subject(r.partition)))
	return err == nil
}

// close gives up the consumer.
func (r *reader[T]) close() {
	if r.messages != nil {
		r.interrupt()
		r.messages.Stop()
		r.messages = nil
	}
}

// parse reads what was stored. A message that nobody can decode has an Err, and is OnFailure's to judge.
func (r *reader[T]) parse(m jetstream.Msg, md *jetstream.MsgMetadata) partition.Message[T] {
	p := partition.Message[T]{Position: md.Sequence.Stream, Raw: m.Data(), Headers: m.Headers(), Stored: md.Timestamp}
	if id, ok := storedID(m.Headers()); ok && id.isSession() {
		p.Session, p.Number = id.session, id.number
	}
	v, err := r.unmarshal(m.Data())
	if err != nil {
		p.Err = &DecodeError{Position: p.Position, Err: err}
	} else {
		p.Value = v
	}
	key, ok := storedKey(m.Headers())
	if !ok && err == nil { // stored by somebody else than a gateway
		key = r.codec.Key(v)
	}
	p.Key = key
	return p
}

// unmarshal is the codec's. A panic of it is an error: it must not end the reading.
func (r *reader[T]) unmarshal(data []byte) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return r.codec.Unmarshal(data)
}
