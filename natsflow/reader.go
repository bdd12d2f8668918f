package natsflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/partition"
)

const (
	readerOpen    = 2 * time.Second        // how long the creation of a consumer may take before it is tried again
	readerPause   = 100 * time.Millisecond // before it is tried again
	readerSilence = 5 * time.Second        // after so long without a message the stream is asked whether there is one
)

// reader reads a partition of the stream in order, by a consumer that is made anew whenever something is wrong with it. It is
// used by one goroutine.
type reader[T any] struct {
	js        jetstream.JetStream
	topic     Topic
	codec     Codec[T]
	partition int
	last      uint64    // the position before the next message
	pulls     *pulls    // nil: to be opened
	short     time.Time // when the stream was first seen to end before last; zero: it does not
}

// Next implements partition.Source.
func (r *reader[T]) Next(ctx context.Context) (partition.Message[T], error) {
	for {
		if ctx.Err() != nil {
			r.close()
			return partition.Message[T]{}, ctx.Err()
		}
		if r.pulls == nil {
			if err := r.open(ctx); err != nil {
				if errors.Is(err, errStreamIsOlder) {
					return partition.Message[T]{}, err
				}
				pause(ctx, readerPause)
			}
			continue
		}
		m, at, err := r.pulls.next(ctx)
		switch {
		case errors.Is(err, errIdle):
			if r.missed(ctx) {
				r.close()
			}
		case err != nil: // also at the end of ctx
			r.close()
			pause(ctx, readerPause)
		case at.position <= r.last: // not in order: look again from where it was right
			r.close()
		default:
			r.last = at.position
			return r.parse(m, at), nil
		}
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
		r.short = time.Time{} // another leader may be behind, too
		return err
	}
	if err := r.ends(stream.CachedInfo().State.LastSeq, time.Now()); err != nil {
		return err
	}
	r.pulls, err = newPulls(attempt, r.js, r.topic.Name, r.topic.subject(r.partition), r.last+1)
	return err
}

// shortLimit is how long a stream may end before what was read of it: a consumer's server may have taken a message that the
// leader, which says where the stream ends, is still about to take.
const shortLimit = 3 * time.Second

var errShort = errors.New("the stream's leader does not know yet of the last message that was read")

// ends is told where the stream ends. Its error says that it can't be read now, or ever.
func (r *reader[T]) ends(end uint64, now time.Time) error {
	switch {
	case end >= r.last:
		r.short = time.Time{}
		return nil
	case r.short.IsZero():
		r.short = now
	}
	if now.Sub(r.short) < shortLimit {
		return errShort
	}
	return fmt.Errorf("%w: it ends with %d, and up to %d all is settled", errStreamIsOlder, end, r.last)
}

// missed reports whether the stream has a message behind the last one that should have come.
func (r *reader[T]) missed(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, readerOpen)
	defer cancel()
	stream, err := r.js.Stream(ctx, r.topic.Name)
	if err != nil {
		return false
	}
	if stream.CachedInfo().State.LastSeq < r.last {
		return true // open says what is wrong
	}
	m, err := lookup{From: r.last + 1, Next: r.topic.subject(r.partition)}.find(ctx, r.js, r.topic.Name)
	return err == nil && m.Position > 0 && len(r.pulls.arrived) == 0 // else it may have come meanwhile
}

// close gives up the consumer.
func (r *reader[T]) close() {
	if r.pulls != nil {
		r.pulls.close()
		r.pulls = nil
	}
}

// parse reads what was stored. A message that nobody can decode has an Err, and is OnFailure's to judge.
func (r *reader[T]) parse(m *nats.Msg, at place) partition.Message[T] {
	p := partition.Message[T]{Position: at.position, Raw: m.Data, Headers: m.Header, Stored: time.Unix(0, at.stored)}
	if id, ok := storedID(m.Header); ok && id.isSession() {
		p.Session, p.Number = id.session, id.number
	}
	key, stored := storedKey(m.Header)
	p.Key = key
	if err := r.decode(&p, m.Data, !stored); err != nil {
		p.Err = &DecodeError{Position: p.Position, Err: err}
	}
	return p
}

// decode has the codec make p's value of the data, and its key if that was not stored with it: then the message is not a
// gateway's. A panic of the codec is an error: it must not end the reading.
func (r *reader[T]) decode(p *partition.Message[T], data []byte, withKey bool) (err error) {
	returned := false
	defer func() {
		if v := recover(); !returned {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	v, err := r.codec.Unmarshal(data)
	if err == nil {
		if withKey {
			p.Key = r.codec.Key(v)
		}
		p.Value = v
	}
	returned = true
	return err
}
