package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/flow"
)

// kind is how a stream behaves.
type kind int

const (
	steady  kind = iota // a message every steadyPause, each due at its time: the well-behaved ones, whose delay is measured
	bursty              // fifty at once, then a pause
	slow                // one handler in four takes its time
	stalled             // sends all that it can; one handler in eighty stands still, and its key with it
	silent              // sends a few and says nothing more for all its life
	leaving             // like bursty, but goes away in the middle
)

// kindOf gives half of the streams to the well-behaved.
func kindOf(i int) kind {
	switch n := i % 20; {
	case n < 10:
		return steady
	case n < 12:
		return bursty
	case n < 16:
		return slow
	case n < 18:
		return stalled
	case n < 19:
		return silent
	}
	return leaving
}

const (
	steadyPause = 500 * time.Millisecond
	steadyWork  = time.Millisecond
	burst       = 50
	stallEvery  = 80
)

// clients keep all streams up until ending.
type clients struct {
	cfg     config
	s       *service
	w       *watch
	others  bool // than well-behaved ones
	stubs   []testpb.TestServiceClient
	ids     atomic.Int64
	ending  atomic.Bool
	workers sync.WaitGroup
}

func (c *clients) run() {
	for i := range c.cfg.streams {
		if !c.others && kindOf(i) != steady {
			continue
		}
		c.workers.Go(func() {
			for !c.ending.Load() {
				c.stream(i)
			}
		})
	}
}

// stream is one stream, from its first message to the check of its end.
func (c *clients) stream(i int) {
	id := int(c.ids.Add(1))
	r := new(record)
	c.s.records.Store(id, r)
	defer c.s.records.Delete(id)
	k := kindOf(i)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), streamHeader, strconv.Itoa(id)))
	defer cancel()
	up, err := c.stubs[rand.N(len(c.stubs))].StreamingInputCall(ctx)
	if err != nil {
		c.ended(id, r, k, 0, nil, err)
		return
	}
	life := c.cfg.life/5 + rand.N(c.cfg.life*4/5)
	if k == leaving {
		defer time.AfterFunc(life/2, cancel).Stop()
	}
	p := &pen{k: k, cfg: c.cfg, size: sizeOf(k)}
	for end := time.Now().Add(life); time.Now().Before(end) && (k != silent || p.seq < 5); {
		due := p.pause(ctx, c.w.start)
		l := p.write(due)
		before := time.Now()
		if err = up.Send(l.request(p.size)); err != nil {
			break // io.EOF: the stream has ended, CloseAndRecv says why
		}
		p.sent()
		if k == stalled {
			c.w.sent(time.Since(before))
		}
	}
	if k == silent && err == nil {
		stop := time.AfterFunc(life, func() { _ = up.CloseSend() })
		defer stop.Stop()
		answer := new(reply)
		err = up.RecvMsg(answer)
		c.ended(id, r, k, p.seq, &outcome{answer, up.Trailer()}, err)
		return
	}
	answer, err := up.CloseAndRecv()
	c.ended(id, r, k, p.seq, &outcome{answer, up.Trailer()}, err)
}

// pen writes the messages of one stream.
type pen struct {
	k       kind
	cfg     config
	size    int
	seq     uint64
	perKey  [keys]uint64
	current letter
	next    time.Duration // when the next is due, for steady ones
}

func sizeOf(k kind) int {
	if k == stalled {
		return 4 << 10
	}
	return letterSize << rand.N(7) // up to 2 KiB
}

// pause waits until the next message is due and says when that was.
func (p *pen) pause(ctx context.Context, start time.Time) time.Duration {
	now := time.Since(start)
	wait := time.Duration(0)
	switch {
	case p.k == steady && p.seq == 0:
		p.next = now + rand.N(steadyPause)
		wait = p.next - now
	case p.k == steady: // one that is late stays due when it was, whatever held it up
		p.next += steadyPause
		wait = p.next - now
	case p.k == slow:
		wait = steadyPause
	case (p.k == bursty || p.k == leaving) && p.seq%burst == 0:
		wait = rand.N(p.cfg.life * 4 / 5)
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if p.k == steady {
		return p.next
	}
	return now
}

func (p *pen) write(due time.Duration) letter {
	l := letter{seq: p.seq + 1, due: due, key: byte(rand.N(keys)), timed: p.k == steady}
	switch {
	case p.k == steady:
		l.work = steadyWork
	case p.k == slow && l.seq%4 == 0:
		l.work = p.cfg.slow
	case p.k == stalled && l.seq%2 == 1: // half of its messages are of the key that stands still, so one a stream does
		l.key = 0
		if l.seq%stallEvery == 1 {
			l.work = p.cfg.stall/2 + rand.N(p.cfg.stall/2) // of one length, they would all end at once, again and again
		}
	}
	l.keySeq = p.perKey[l.key] + 1
	p.current = l
	return l
}

// sent says that the last message written was sent.
func (p *pen) sent() {
	p.seq = p.current.seq
	p.perKey[p.current.key] = p.current.keySeq
}

// outcome is what a client is told at the end.
type outcome struct {
	answer  *reply
	trailer metadata.MD
}

// ended checks how a stream ended, as its client sees it.
func (c *clients) ended(id int, r *record, k kind, sent uint64, o *outcome, err error) {
	r.mu.Lock()
	begun := r.begun
	r.mu.Unlock()
	switch code := status.Code(err); {
	case err == nil:
		if bad := r.checkReply(sent, uint64(o.answer.GetAggregatedPayloadSize())); bad != nil {
			c.w.wrong("stream %d, ended well: %v", id, bad)
		}
		c.w.count(func(e *ends) {
			e.well++
			if k == stalled {
				e.stalls += int((sent + stallEvery - 1) / stallEvery)
			}
		})
	case k == leaving && (code == codes.Canceled || errors.Is(err, io.EOF)):
		c.w.count(func(e *ends) { e.cancelled++ })
	case !c.ending.Load():
		c.w.wrong("stream %d, of kind %d, ended with %v", id, k, err)
	case !begun: // the server was gone before it came: nothing of it was taken on
		c.w.count(func(e *ends) { e.shut++ })
	case flow.ClassifyFailure(err) == flow.FailureShutdown:
		p, ok := flow.ProgressFromTrailer(o.trailer)
		if !ok {
			c.w.wrong("stream %d was shut down without progress in its trailers", id)
		} else if bad := r.checkProgress(p, sent); bad != nil {
			c.w.wrong("stream %d, shut down: %v", id, bad)
		}
		c.w.count(func(e *ends) { e.shut++ })
	default:
		c.w.wrong("stream %d ended with %v in the shutdown", id, err)
	}
}
